//! Commands to a TPM.

use crate::frame::{HEADER, Header, MAX_SIZE, NO_SESSIONS};
use crate::response_code::ResponseCode;

/// A command whose header is plausible. What follows the header is not looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'b> {
    tag: u16,
    code: u32,
    bytes: &'b [u8],
}

impl<'b> Command<'b> {
    /// Reads the header; the stated size must be the number of bytes, at most
    /// [`MAX_SIZE`].
    pub fn parse(bytes: &'b [u8]) -> Result<Self, ResponseCode> {
        let header = Header::of_whole(bytes)
            .filter(|_| bytes.len() <= MAX_SIZE)
            .ok_or(ResponseCode::COMMAND_SIZE)?;
        Ok(Self {
            tag: header.tag,
            code: header.code,
            bytes,
        })
    }

    /// `TPM_CC`.
    pub fn code(&self) -> u32 {
        self.code
    }

    /// Whether the command has no authorization area.
    pub fn is_without_sessions(&self) -> bool {
        self.tag == NO_SESSIONS
    }

    /// What follows the header.
    pub fn parameters(&self) -> &'b [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The whole command.
    pub fn as_bytes(&self) -> &'b [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_states_its_own_length() {
        let bytes = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
        assert_eq!(Command::parse(&bytes).map(|c| c.code()), Ok(0x17b));
        for length in 0..bytes.len() {
            assert_eq!(
                Command::parse(bytes.get(..length).unwrap_or_default()),
                Err(ResponseCode::COMMAND_SIZE)
            );
        }
    }
}
