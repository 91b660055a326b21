//! Lines out of pieces of a stream.

use crate::error::HostError;

/// What is not a whole line yet waits for the rest.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    waiting: Vec<u8>,
}

/// An event has some hundred bytes.
const MAX_LINE: usize = 64 * 1024;

impl Lines {
    /// Takes the next piece.
    pub(crate) fn add(&mut self, piece: &[u8]) -> Result<(), HostError> {
        self.waiting.extend_from_slice(piece);
        let rest = self.waiting.rsplit(|byte| *byte == b'\n').next();
        match rest.is_some_and(|rest| rest.len() > MAX_LINE) {
            true => Err(HostError::TooLong { limit: MAX_LINE }),
            false => Ok(()),
        }
    }

    /// The next line without its end.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let end = self.waiting.iter().position(|byte| *byte == b'\n')?;
        Some(self.waiting.drain(..=end).take(end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come_and_none_is_without_end() {
        let mut lines = Lines::default();
        for piece in ["one\ntw", "o", "\n\n", "three\nfo"] {
            assert!(lines.add(piece.as_bytes()).is_ok());
        }
        let whole: Vec<Vec<u8>> = std::iter::from_fn(|| lines.next()).collect();
        assert_eq!(
            whole,
            [b"one".to_vec(), b"two".to_vec(), vec![], b"three".to_vec()]
        );
        assert!(lines.add(&[b'x'; MAX_LINE]).is_err());
    }
}
