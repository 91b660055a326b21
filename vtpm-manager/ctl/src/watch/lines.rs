//! Lines out of pieces of a stream.

use std::error::Error;

/// What is not a whole line yet waits for the rest.
#[derive(Debug, Default)]
pub(super) struct Lines {
    waiting: Vec<u8>,
}

/// An event has some hundred bytes.
const MAX_LINE: usize = 64 * 1024;

impl Lines {
    /// Takes the next piece.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.waiting.extend_from_slice(piece);
        let rest = self.waiting.rsplit(|byte| *byte == b'\n').next();
        if rest.is_some_and(|rest| rest.len() > MAX_LINE) {
            return Err(format!("a line of events is longer than {MAX_LINE} bytes").into());
        }
        Ok(())
    }

    /// The next line without its end.
    pub(super) fn next(&mut self) -> Option<String> {
        let end = self.waiting.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.waiting.drain(..=end).take(end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come_and_none_is_without_end() {
        let mut lines = Lines::default();
        for piece in ["one\ntw", "o", "\n\n", "three\r\nfo"] {
            assert!(lines.add(piece.as_bytes()).is_ok());
        }
        let whole: Vec<String> = std::iter::from_fn(|| lines.next()).collect();
        assert_eq!(whole, ["one", "two", "", "three"]);
        assert!(lines.add(&[b'x'; MAX_LINE]).is_err());
    }
}
