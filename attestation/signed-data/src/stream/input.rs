//! A stream as bytes that come: one batch after the other, and never more than one in memory.

use std::io::{self, Read};

use minicbor::{Decoder, data::Type};

use crate::cose::FormatError;
use crate::stream::batch::{Batch, MAX_BATCH};
use crate::stream::statement::BATCH_TYPE;

/// Takes batches from bytes.
#[derive(Debug)]
pub struct BatchInput<R> {
    input: R,
    bytes: Vec<u8>,
    /// Batches that were read whole.
    batches: u64,
    /// Bytes of those batches.
    length: u64,
    /// What came last was no batch, so nothing can be found behind it.
    failed: bool,
}

/// Why there is no next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The system.
    #[error("the stream cannot be read")]
    Io(#[from] io::Error),
    /// It ends within a batch: what is there of it begins as one.
    #[error(
        "the stream ends within batch {} of this input: what follows byte {length} was cut off",
        .batches + 1
    )]
    CutOff {
        /// Whole batches before.
        batches: u64,
        /// Bytes of those.
        length: u64,
    },
    /// Something else.
    #[error("what follows byte {length} is no batch of a stream")]
    Format {
        /// Bytes of the whole batches before.
        length: u64,
        /// Why.
        #[source]
        source: FormatError,
    },
}

/// Of a byte string: its first byte, and 4 bytes of length at most.
const HEADER: usize = 5;

impl<R: Read> BatchInput<R> {
    /// Reads from here.
    pub fn new(input: R) -> Self {
        Self {
            input,
            bytes: Vec::new(),
            batches: 0,
            length: 0,
            failed: false,
        }
    }

    /// Bytes of all batches that were read whole.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn read(&mut self) -> Result<Option<Batch>, InputError> {
        self.bytes.clear();
        let mut header = [0; HEADER];
        let [first, rest @ ..] = &mut header;
        if !self.fill(std::slice::from_mut(first))? {
            return Ok(None);
        }
        let more = match *first {
            0x58 => 1,
            0x59 => 2,
            0x5a => 4,
            _ => 0,
        };
        if let Some(rest) = rest.get_mut(..more)
            && !self.fill(rest)?
        {
            return Err(self.cut_off(&[*first]));
        }
        let header = header.get(..=more).unwrap_or_default();
        let length = body_length(header).map_err(|source| self.format(source))?;
        // Memory is taken as bytes come, not as the header promises.
        let read = (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut self.bytes)?;
        if read < length {
            return Err(self.cut_off(header));
        }
        let batch = Batch::from_cbor(&self.bytes).map_err(|source| self.format(source))?;
        self.batches = self.batches.saturating_add(1);
        let whole = (header.len() as u64).saturating_add(length as u64);
        self.length = self.length.saturating_add(whole);
        Ok(Some(batch))
    }

    /// Whether the bytes are there; not one of them, if not.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, InputError> {
        match self.input.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Of a batch with this header, or what is there of it, whose body is not whole.
    fn cut_off(&self, header: &[u8]) -> InputError {
        match begins_as_batch(header, &self.bytes) {
            true => InputError::CutOff {
                batches: self.batches,
                length: self.length,
            },
            false => {
                let message = "it begins otherwise, and ends";
                self.format(minicbor::decode::Error::message(message).into())
            }
        }
    }

    fn format(&self, source: FormatError) -> InputError {
        InputError::Format {
            length: self.length,
            source,
        }
    }
}

/// Ends behind the last batch, or with an error.
impl<R: Read> Iterator for BatchInput<R> {
    type Item = Result<Batch, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.read().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Whether bytes that end too early are those of a batch, as far as they go. None is so short that its length
/// fits into one byte.
fn begins_as_batch(header: &[u8], body: &[u8]) -> bool {
    const ARRAY_AND_SIGN1: &[u8] = &[0x82, 0xd2, 0x84];
    /// A map of four, ES256, and a content type with the length of ours.
    const LABEL: &[u8] = &[0xa4, 0x01, 0x26, 0x03, 0x78];
    #[expect(clippy::cast_possible_truncation, reason = "41")]
    const TYPE_LENGTH: &[u8] = &[BATCH_TYPE.len() as u8];
    let alike = |found: &[u8], expected: &[u8]| found.iter().zip(expected).all(|(a, b)| a == b);
    let label = match body.get(ARRAY_AND_SIGN1.len()..) {
        None | Some([]) => &[],
        Some([0x58, rest @ ..]) => rest.get(1..).unwrap_or_default(),
        Some([0x59, rest @ ..]) => rest.get(2..).unwrap_or_default(),
        Some(_) => return false,
    };
    matches!(header, [0x59 | 0x5a, ..])
        && alike(body, ARRAY_AND_SIGN1)
        && alike(label, &[LABEL, TYPE_LENGTH, BATCH_TYPE.as_bytes()].concat())
}

/// The length that a byte string's header says, in the one form that it has (RFC 8949 §4.2.1).
fn body_length(header: &[u8]) -> Result<usize, FormatError> {
    let [first, length @ ..] = header else {
        return Err(FormatError::NotDeterministic);
    };
    if Decoder::new(header).datatype()? != Type::Bytes {
        return Err(minicbor::decode::Error::message("it begins as no byte string").into());
    }
    let said = match length.is_empty() {
        true => usize::from(first & 0x1f),
        false => (length.iter()).fold(0, |sum: usize, byte| sum << 8 | usize::from(*byte)),
    };
    let shortest = match length.len() {
        0 => 0,
        1 => 24,
        2 => 1 << 8,
        _ => 1 << 16,
    };
    match said {
        said if said < shortest || (length.is_empty() && said >= 24) => {
            Err(FormatError::NotDeterministic)
        }
        said if said > MAX_BATCH => Err(FormatError::TooLong {
            length: said,
            limit: MAX_BATCH,
        }),
        said => Ok(said),
    }
}
