//! Finds what stands in a file of PEM blocks, perhaps with DER among them.
//!
//! The PEM readers of the libraries pass over what they do not know, and over a block whose BEGIN
//! does not start a line. A list of roots then lacks some, and no error tells. So this one gives back
//! everything, or says where it found what it cannot read.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

/// A PEM block.
pub struct Block {
    /// What stands behind BEGIN: printable ASCII.
    pub label: String,
    /// What is encoded in it. It may be a private key.
    pub contents: Zeroizing<Vec<u8>>,
    /// The line of its BEGIN, counted from one.
    pub line: usize,
}

/// Where something stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Counted in bytes, from zero.
    Byte(usize),
    /// Counted from one.
    Line(usize),
}

/// Why a file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Binary data.
    #[error(
        "at byte {offset} it has binary data that is no certificate in DER; other files may be \
         converted with `openssl x509`, `openssl crl2pkcs7` or `openssl pkcs7 -print_certs`"
    )]
    Binary {
        /// Where it begins.
        offset: usize,
    },
    /// A block that cannot be decoded.
    #[error("the {label} that begins in line {line} is not encoded in base64, or is empty")]
    Body {
        /// Of its BEGIN.
        line: usize,
        /// Its label.
        label: String,
    },
    /// Another number of blocks than one.
    #[error("it has {found} PEM blocks, and one is needed")]
    Count {
        /// How many.
        found: usize,
    },
    /// A block of something else.
    #[error("in line {line} begins a {label}, where {wanted} is needed: take it out of the file")]
    Label {
        /// Of its BEGIN.
        line: usize,
        /// Its label.
        label: String,
        /// What would do.
        wanted: &'static str,
    },
    /// Something that looks like BEGIN or END of a block.
    #[error(
        "line {line} looks like BEGIN or END of a PEM block, but is none: such a line starts with \
         five dashes, and each BEGIN has its END. Mend the line, or take it out"
    )]
    Mark {
        /// Which line.
        line: usize,
    },
    /// A certificate with OpenSSL's trust settings, which are not applied here.
    #[error(
        "the certificate in line {line} carries trust settings of OpenSSL, which would be ignored: \
         write it without them, `openssl x509 -in FILE -out FILE`"
    )]
    TrustSettings {
        /// Of its BEGIN.
        line: usize,
    },
    /// BEGIN without END, or with the END of something else.
    #[error(
        "the {label} that begins in line {line} has no END of its own: the file may be cut off"
    )]
    Unterminated {
        /// Of its BEGIN.
        line: usize,
        /// Its label.
        label: String,
    },
}

/// What a file holds.
pub(super) enum Item {
    Pem(Block),
    Der { offset: usize, certificate: Vec<u8> },
}

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";
/// UTF-8's byte order mark: editors and concatenation leave it at the start of files.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];
/// The longest label of RFC 7468 has 21 characters.
const MAX_LABEL: usize = 64;

/// All PEM blocks of a file, which may have other text between them.
pub fn blocks(file: &[u8]) -> Result<Vec<Block>, FileError> {
    items(file)?
        .into_iter()
        .map(|item| match item {
            Item::Pem(block) => Ok(block),
            Item::Der { offset, .. } => Err(FileError::Binary { offset }),
        })
        .collect()
}

/// The one block of a file.
pub fn only_block(file: &[u8]) -> Result<Block, FileError> {
    let blocks = blocks(file)?;
    let found = blocks.len();
    match <[Block; 1]>::try_from(blocks) {
        Ok([block]) => Ok(block),
        Err(_) => Err(FileError::Count { found }),
    }
}

/// All PEM blocks and DER certificates of a file.
pub(super) fn items(file: &[u8]) -> Result<Vec<Item>, FileError> {
    let mut scanner = Scanner {
        file,
        position: 0,
        line: 1,
    };
    let mut items = Vec::new();
    // A block may begin at the start of a line, or behind the end of another one.
    let mut at_start = true;
    while let Some(&byte) = scanner.rest().first() {
        let rest = scanner.rest();
        if at_start && rest.starts_with(BEGIN) {
            items.push(Item::Pem(scanner.block()?));
        } else if rest.starts_with(BYTE_ORDER_MARK) {
            scanner.advance(BYTE_ORDER_MARK.len());
        } else if matches!(byte, b'\n' | b'\r') {
            scanner.advance(1);
            at_start = true;
        } else if matches!(byte, b' ' | b'\t') {
            scanner.advance(1);
        } else if begins_der(rest) {
            items.push(scanner.certificate()?);
            at_start = true;
        } else {
            scanner.text()?;
            at_start = false;
        }
    }
    Ok(items)
}

struct Scanner<'a> {
    file: &'a [u8],
    position: usize,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a [u8] {
        self.file.get(self.position..).unwrap_or_default()
    }

    fn advance(&mut self, length: usize) {
        let passed = self.rest().get(..length).unwrap_or_default();
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count();
        self.position += length;
    }

    /// A block, whose BEGIN is next.
    fn block(&mut self) -> Result<Block, FileError> {
        let line = self.line;
        self.advance(BEGIN.len());
        let length = find(self.rest(), DASHES).filter(|&length| length <= MAX_LABEL);
        let label = length.and_then(|length| self.rest().get(..length));
        let label = label
            .filter(|label| label.iter().all(|&c| c == b' ' || c.is_ascii_graphic()))
            .ok_or(FileError::Mark { line })?;
        self.advance(label.len() + DASHES.len());
        let label = String::from_utf8_lossy(label).into_owned();

        let unterminated = || FileError::Unterminated {
            line,
            label: label.clone(),
        };
        let length = find(self.rest(), DASHES).ok_or_else(unterminated)?;
        let body = self.rest().get(..length).unwrap_or_default();
        self.advance(length);
        let end = format!("-----END {label}-----");
        if !self.rest().starts_with(end.as_bytes()) {
            return Err(unterminated());
        }
        self.advance(end.len());
        // A BEGIN that lost its dashes to this END is one all the same.
        if self.rest().starts_with(b"BEGIN ") {
            return Err(FileError::Mark { line: self.line });
        }
        match decode(body) {
            Some(contents) => Ok(Block {
                label,
                contents,
                line,
            }),
            None => Err(FileError::Body { line, label }),
        }
    }

    /// A certificate in DER.
    fn certificate(&mut self) -> Result<Item, FileError> {
        let offset = self.position;
        let (behind, _) =
            X509Certificate::from_der(self.rest()).map_err(|_| FileError::Binary { offset })?;
        let length = self.rest().len() - behind.len();
        let certificate = self.rest().get(..length).unwrap_or_default().to_vec();
        // Line ends within it are none.
        self.position += length;
        Ok(Item::Der {
            offset,
            certificate,
        })
    }

    /// Text to the end of its line, or to where DER begins.
    fn text(&mut self) -> Result<(), FileError> {
        let mut length = 0;
        while let Some(&byte) = self.rest().get(length) {
            let here = self.rest().get(length..).unwrap_or_default();
            if matches!(byte, b'\n' | b'\r') || (length > 0 && begins_der(here)) {
                break;
            }
            if byte.is_ascii_control() && !matches!(byte, b'\t' | b'\x0c') {
                let offset = self.position + length;
                return Err(FileError::Binary { offset });
            }
            length += 1;
        }
        let text = self.rest().get(..length).unwrap_or_default();
        if looks_like_a_mark(text) {
            return Err(FileError::Mark { line: self.line });
        }
        self.advance(length);
        Ok(())
    }
}

/// A SEQUENCE with a length in the long form, as every certificate has it. Text has no such two
/// bytes one after the other.
fn begins_der(bytes: &[u8]) -> bool {
    matches!(bytes, [0x30, 0x81..=0x84, ..])
}

/// Text where a block may have been meant: it must not pass for a comment. Editors make other dashes
/// out of those of PEM.
fn looks_like_a_mark(text: &[u8]) -> bool {
    const DASHES: [&[u8]; 5] = [
        b"-",
        "\u{2013}".as_bytes(),
        "\u{2014}".as_bytes(),
        b"\x96",
        b"\x97",
    ];
    const LABELS: [&[u8]; 3] = [b"CERTIFICATE", b"X509 ", b"TRUSTED "];
    let text = text.to_ascii_uppercase();
    [&b"BEGIN"[..], b"END"].into_iter().any(|word| {
        let mut places = text.windows(word.len()).enumerate();
        places.any(|(place, found)| {
            let (before, behind) = text.split_at(place);
            let behind = behind.get(word.len()..).unwrap_or_default();
            let starts = |with: &&[u8]| behind.trim_ascii_start().starts_with(with);
            let ends = |with: &&[u8]| before.trim_ascii_end().ends_with(with);
            found == word && (DASHES.iter().any(ends) || LABELS.iter().any(starts))
        })
    })
}

fn decode(body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let compact = body.iter().copied();
    let compact: Zeroizing<Vec<u8>> =
        Zeroizing::new(compact.filter(|byte| !byte.is_ascii_whitespace()).collect());
    let contents = Zeroizing::new(STANDARD.decode(&*compact).ok()?);
    (!contents.is_empty()).then_some(contents)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("label", &self.label)
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(offset) => write!(f, "at byte {offset}"),
            Self::Line(line) => write!(f, "in line {line}"),
        }
    }
}
