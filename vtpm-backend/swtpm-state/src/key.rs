//! Keys for states and migration blobs, as swtpm reads them from files and descriptors.

use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::str::FromStr;

use locked_memory::{Locked, NotLocked, wipe_stack};
use ring::{digest, pbkdf2};
use zeroize::{Zeroize, Zeroizing};

use crate::cipher::Cipher;

/// A key for AES-CBC and HMAC-SHA-256, in locked memory. It is zeroed when dropped, and never shown.
pub struct Key(Locked<Cipher>);

/// How long a key is; swtpm's `mode=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KeySize {
    /// `aes-128-cbc`, or `aes-cbc`
    #[default]
    Bits128,
    /// `aes-256-cbc`
    Bits256,
}

/// How a key is written; swtpm's `format=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KeyFormat {
    /// Hexadecimal digits, perhaps after `0x`; a space or the end of the line ends them.
    #[default]
    Hex,
    /// As many bytes as the key has.
    Binary,
}

/// How a key is made of a passphrase; swtpm's `kdf=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PassphraseKdf {
    /// PBKDF2-HMAC-SHA-512, 1,000 rounds, salt "swtpm".
    #[default]
    Pbkdf2,
    /// The first bytes of SHA-512.
    Sha512,
}

/// What a file or descriptor with a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// The key itself (`file=`, `fd=`).
    Key(KeyFormat),
    /// A passphrase (`pwdfile=`, `pwdfd=`): every byte counts, also a line's end.
    Passphrase(PassphraseKdf),
}

/// Why there is no key. It shows nothing of what was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A name that swtpm does not know.
    #[error("{name:?} is no {what}; there are {known}")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// What was given.
        name: String,
        /// What can be given.
        known: &'static str,
    },
    /// It cannot be read.
    #[error("the key cannot be read")]
    Read(#[source] io::Error),
    /// There is more than any key or passphrase has.
    #[error("there are more than {most} bytes where a key should be")]
    TooLong {
        /// The most that is read.
        most: usize,
    },
    /// There is no passphrase.
    #[error("the passphrase is empty")]
    Empty,
    /// A digit is none.
    #[error("the key has something other than hexadecimal digits at position {position}")]
    NotHex {
        /// Counted from zero, after `0x`.
        position: usize,
    },
    /// It has another length.
    #[error("the key has {} bits; {} are needed", 8 * given, needed.bits())]
    Length {
        /// In bytes.
        given: usize,
        /// As the mode says.
        needed: KeySize,
    },
    /// No memory can be locked.
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
}

/// Longer passphrases are none.
const MOST: usize = 64 * 1024;
const ROUNDS: NonZeroU32 = NonZeroU32::new(1000).unwrap();
const SALT: &[u8] = b"swtpm";

impl KeySize {
    /// In bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }

    /// In bits.
    pub fn bits(self) -> usize {
        8 * self.bytes()
    }
}

impl FromStr for KeySize {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        match name {
            "aes-cbc" | "aes-128-cbc" => Ok(Self::Bits128),
            "aes-256-cbc" => Ok(Self::Bits256),
            _ => Err(KeyError::Unknown {
                what: "encryption mode",
                name: name.to_owned(),
                known: "aes-cbc, aes-128-cbc and aes-256-cbc",
            }),
        }
    }
}

impl FromStr for KeyFormat {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        match name {
            "hex" => Ok(Self::Hex),
            "binary" => Ok(Self::Binary),
            _ => Err(KeyError::Unknown {
                what: "key format",
                name: name.to_owned(),
                known: "hex and binary",
            }),
        }
    }
}

impl FromStr for PassphraseKdf {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        match name {
            "pbkdf2" => Ok(Self::Pbkdf2),
            "sha512" => Ok(Self::Sha512),
            _ => Err(KeyError::Unknown {
                what: "key derivation",
                name: name.to_owned(),
                known: "pbkdf2 and sha512",
            }),
        }
    }
}

impl Key {
    /// Reads a key to its end, which has to come.
    pub fn read(source: impl Read, form: KeyForm, size: KeySize) -> Result<Self, KeyError> {
        // As large as it may get: nothing is left behind in smaller buffers.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST + 1));
        let limit = u64::try_from(MOST + 1).unwrap_or(u64::MAX);
        source
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(KeyError::Read)?;
        if bytes.len() > MOST {
            return Err(KeyError::TooLong { most: MOST });
        }
        Self::from_bytes(&bytes, form, size)
    }

    /// The same of what was read elsewhere.
    pub fn from_bytes(bytes: &[u8], form: KeyForm, size: KeySize) -> Result<Self, KeyError> {
        let made = Locked::try_new(|| {
            let mut key = [0; 32];
            let filled = fill(&mut key, bytes, form, size);
            let cipher = filled.map(|()| Cipher::new(&key, size));
            key.zeroize();
            cipher
        })?;
        made.map(Self)
    }

    /// How long it is.
    pub fn size(&self) -> KeySize {
        self.0.size()
    }

    /// Has something done with it; what that leaves behind on the stack is overwritten.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&Cipher) -> T) -> T {
        let made = use_it(&self.0);
        wipe_stack();
        made
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bits)", self.size().bits())
    }
}

fn fill(key: &mut [u8; 32], bytes: &[u8], form: KeyForm, size: KeySize) -> Result<(), KeyError> {
    let length = |given| KeyError::Length {
        given,
        needed: size,
    };
    let to = key
        .get_mut(..size.bytes())
        .ok_or_else(|| length(bytes.len()))?;
    match form {
        KeyForm::Key(KeyFormat::Binary) if bytes.len() == to.len() => to.copy_from_slice(bytes),
        KeyForm::Key(KeyFormat::Binary) => return Err(length(bytes.len())),
        KeyForm::Key(KeyFormat::Hex) => {
            let digits = bytes.strip_prefix(b"0x").unwrap_or(bytes);
            let end = digits.iter().position(u8::is_ascii_whitespace);
            let digits = end.and_then(|end| digits.get(..end)).unwrap_or(digits);
            if let Some(position) = digits.iter().position(|byte| !byte.is_ascii_hexdigit()) {
                return Err(KeyError::NotHex { position });
            }
            if digits.len() != 2 * to.len() {
                return Err(length(digits.len() / 2));
            }
            for (to, pair) in to.iter_mut().zip(digits.chunks_exact(2)) {
                *to = pair.iter().fold(0, |byte, digit| byte << 4 | value(*digit));
            }
        }
        KeyForm::Passphrase(_) if bytes.is_empty() => return Err(KeyError::Empty),
        KeyForm::Passphrase(PassphraseKdf::Pbkdf2) => {
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, ROUNDS, SALT, bytes, to);
        }
        KeyForm::Passphrase(PassphraseKdf::Sha512) => {
            let hash = digest::digest(&digest::SHA512, bytes);
            for (to, from) in to.iter_mut().zip(hash.as_ref()) {
                *to = *from;
            }
        }
    }
    Ok(())
}

/// Of a hexadecimal digit.
fn value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}
