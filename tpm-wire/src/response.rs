//! Responses of a TPM.

use crate::frame::{HEADER, Header, NO_SESSIONS, frame};
use crate::response_code::ResponseCode;

/// A response whose header is plausible. What follows the header is not looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'b> {
    code: ResponseCode,
    body: &'b [u8],
}

impl<'b> Response<'b> {
    /// Reads a response; `None` if it is none: the stated size must be the number of bytes.
    pub fn parse(bytes: &'b [u8]) -> Option<Self> {
        let header = Header::of_whole(bytes)?;
        Some(Self {
            code: ResponseCode::new(header.code),
            body: bytes.get(HEADER..)?,
        })
    }

    /// `TPM_RC`
    pub fn code(&self) -> ResponseCode {
        self.code
    }

    /// What follows the header: handles, parameters and authorization area.
    pub fn body(&self) -> &'b [u8] {
        self.body
    }
}

impl ResponseCode {
    /// A response that carries nothing but this code.
    pub fn response(self) -> Vec<u8> {
        response(self, &[])
    }
}

/// A response without sessions.
pub fn response(code: ResponseCode, parameters: &[u8]) -> Vec<u8> {
    frame(NO_SESSIONS, code.raw(), parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_parameters_has_ten_bytes() {
        assert_eq!(
            ResponseCode::FAILURE.response(),
            [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]
        );
    }

    #[test]
    fn a_response_states_its_own_length() {
        let bytes = response(ResponseCode::SUCCESS, &[1, 2]);
        let read = Response::parse(&bytes).map(|read| (read.code(), read.body()));
        assert_eq!(read, Some((ResponseCode::SUCCESS, &[1, 2][..])));
        for length in 0..bytes.len() {
            assert_eq!(
                Response::parse(bytes.get(..length).unwrap_or_default()),
                None
            );
        }
        assert_eq!(Response::parse(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
