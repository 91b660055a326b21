//! Readings from bytes that come.

use std::io::{self, BufRead, Read};

use serde::de::IgnoredAny;
use signed_data::stream::MAX_READING;

use crate::stream::options::Framing;

/// Takes readings from an input, until it ends or one is none.
#[derive(Debug)]
pub struct ReadingInput<R> {
    input: R,
    framing: Framing,
    /// How many lines, or readings with their length, were taken.
    taken: u64,
    ended: bool,
}

/// Why there is no next reading. It is named by its line, or its place, from one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// The system.
    #[error("the readings cannot be read")]
    Io(#[from] io::Error),
    /// Too long.
    #[error("reading {0} of the input has more than {MAX_READING} bytes, the most of one")]
    TooLong(u64),
    /// Not JSON.
    #[error("line {line} of the input is no JSON; --framing lines takes any lines")]
    NotJson {
        /// The line.
        line: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It ends in the middle: of a line without its end, nobody knows whether it is whole.
    #[error("the input ends within reading {0}: its line end, or a part of its length, is missing")]
    CutOff(u64),
}

impl<R: BufRead> ReadingInput<R> {
    /// Reads from here.
    pub fn new(input: R, framing: Framing) -> Self {
        Self {
            input,
            framing,
            taken: 0,
            ended: false,
        }
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        match self.framing {
            Framing::Lines => self.line(),
            Framing::JsonLines => self.json(),
            Framing::Length => self.prefixed(),
        }
    }

    fn json(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        loop {
            match self.line()? {
                Some(line) if line.iter().all(u8::is_ascii_whitespace) => {}
                Some(line) => {
                    return match serde_json::from_slice::<IgnoredAny>(&line) {
                        Ok(IgnoredAny) => Ok(Some(line)),
                        Err(source) => Err(FramingError::NotJson {
                            line: self.taken,
                            source,
                        }),
                    };
                }
                None => return Ok(None),
            }
        }
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        // And its end.
        let most = MAX_READING as u64 + 1;
        let mut line = Vec::new();
        let read = (&mut self.input).take(most).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        self.taken = self.taken.saturating_add(1);
        match (line.pop_if(|last| *last == b'\n'), line.len()) {
            (Some(_), _) => Ok(Some(line)),
            (None, length) if length > MAX_READING => Err(FramingError::TooLong(self.taken)),
            (None, _) => Err(FramingError::CutOff(self.taken)),
        }
    }

    fn prefixed(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.taken = self.taken.saturating_add(1);
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_READING {
            return Err(FramingError::TooLong(self.taken));
        }
        let mut reading = vec![0; length];
        self.fill(&mut reading)?;
        Ok(Some(reading))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), FramingError> {
        (self.input.read_exact(bytes)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FramingError::CutOff(self.taken),
            _ => FramingError::Io(error),
        })
    }
}

impl<R: BufRead> Iterator for ReadingInput<R> {
    type Item = Result<Vec<u8>, FramingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
