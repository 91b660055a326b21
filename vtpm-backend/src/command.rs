//! Headers of TPM commands and responses (TPM 2.0 Part 1 §18).

/// A command with a plausible header. What follows the header is not looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'b> {
    tag: u16,
    code: u32,
    bytes: &'b [u8],
}

/// `TPM_RC` values that a backend itself answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

/// Tag, size and command or response code.
pub const HEADER: usize = 10;
/// `TPM_ST_NO_SESSIONS`
pub const NO_SESSIONS: u16 = 0x8001;
/// The longest command and response (`TPM_PT_MAX_COMMAND_SIZE` of libtpms).
pub const MAX_COMMAND: usize = 4096;

impl ResponseCode {
    /// `TPM_RC_SUCCESS`
    pub const SUCCESS: Self = Self(0x000);
    /// `TPM_RC_FAILURE`: the TPM is not in a state to answer.
    pub const FAILURE: Self = Self(0x101);
    /// `TPM_RC_COMMAND_SIZE`
    pub const COMMAND_SIZE: Self = Self(0x142);
    /// `TPM_RC_AUTH_CONTEXT`: a session where none is allowed.
    pub const AUTH_CONTEXT: Self = Self(0x145);
    /// `TPM_RC_NO_RESULT`
    pub const NO_RESULT: Self = Self(0x154);
    /// `TPM_RC_RETRY`
    pub const RETRY: Self = Self(0x922);
    /// `TPM_RC_SIZE` of parameter 1
    pub const SIZE_1: Self = Self(0x1d5);
    /// `TPM_RC_VALUE` of parameter 1
    pub const VALUE_1: Self = Self(0x1c4);
    /// `TPM_RC_VALUE` of parameter 2
    pub const VALUE_2: Self = Self(0x2c4);

    /// A response that carries nothing but this code.
    pub fn response(self) -> Vec<u8> {
        response(self, &[])
    }
}

impl<'b> Command<'b> {
    /// Reads the header; the stated size must be the number of bytes.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, ResponseCode> {
        let Some(([t0, t1, s0, s1, s2, s3, c0, c1, c2, c3], _)) =
            bytes.split_first_chunk::<HEADER>()
        else {
            return Err(ResponseCode::COMMAND_SIZE);
        };
        let size = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        if usize::try_from(size) != Ok(bytes.len()) || bytes.len() > MAX_COMMAND {
            return Err(ResponseCode::COMMAND_SIZE);
        }
        Ok(Self {
            tag: u16::from_be_bytes([*t0, *t1]),
            code: u32::from_be_bytes([*c0, *c1, *c2, *c3]),
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

/// How many bytes of a stream belong to the command at its beginning: `None` while its header
/// is not complete, an error if it can be no command.
pub fn length_in_stream(bytes: &[u8]) -> Result<Option<usize>, ResponseCode> {
    let Some(([_, _, s0, s1, s2, s3], _)) = bytes.split_first_chunk::<6>() else {
        return Ok(None);
    };
    match usize::try_from(u32::from_be_bytes([*s0, *s1, *s2, *s3])) {
        Ok(size) if (HEADER..=MAX_COMMAND).contains(&size) => Ok(Some(size)),
        _ => Err(ResponseCode::COMMAND_SIZE),
    }
}

/// A response without sessions.
pub fn response(code: ResponseCode, parameters: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + parameters.len()).unwrap_or(u32::MAX);
    [
        NO_SESSIONS.to_be_bytes().as_slice(),
        &size.to_be_bytes(),
        &code.0.to_be_bytes(),
        parameters,
    ]
    .concat()
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

    #[test]
    fn a_stream_is_cut_at_the_stated_length() {
        assert_eq!(length_in_stream(&[0x80, 1, 0, 0, 0]), Ok(None));
        assert_eq!(length_in_stream(&[0x80, 1, 0, 0, 0, 12]), Ok(Some(12)));
        for size in [0u32, 9, 4097, u32::MAX] {
            let bytes = [&[0x80, 1], size.to_be_bytes().as_slice()].concat();
            assert_eq!(length_in_stream(&bytes), Err(ResponseCode::COMMAND_SIZE));
        }
    }

    #[test]
    fn a_response_without_parameters_has_ten_bytes() {
        assert_eq!(
            ResponseCode::FAILURE.response(),
            [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]
        );
    }
}
