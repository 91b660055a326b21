//! Commands and responses as bytes: what is written, and what is read with bounds.

use tpm_wire::{NO_SESSIONS, SESSIONS, frame};

/// A command that is being written: handles, authorizations, parameters (TPM 2.0 Part 1 §18).
pub(super) struct Command {
    code: u32,
    handles: Vec<u8>,
    authorizations: Vec<u8>,
    parameters: Vec<u8>,
}

/// What is left of a response.
pub(super) struct Reader<'b>(&'b [u8]);

/// `TPM_RS_PW`: the authorization value itself, here always the empty one.
const PASSWORD: u32 = 0x4000_0009;
/// `continueSession`
const CONTINUE: u8 = 1;

impl Command {
    pub(super) fn new(code: u32) -> Self {
        Self {
            code,
            handles: Vec::new(),
            authorizations: Vec::new(),
            parameters: Vec::new(),
        }
    }

    /// A handle that needs no authorization.
    pub(super) fn handle(mut self, handle: u32) -> Self {
        self.handles.extend(handle.to_be_bytes());
        self
    }

    /// A handle that the empty authorization value authorizes.
    pub(super) fn authorized(self, handle: u32) -> Self {
        self.handle(handle).authorization(PASSWORD, 0)
    }

    /// A handle that a policy session authorizes.
    pub(super) fn authorized_by(self, handle: u32, session: u32) -> Self {
        self.handle(handle).authorization(session, CONTINUE)
    }

    fn authorization(mut self, session: u32, attributes: u8) -> Self {
        self.authorizations.extend(session.to_be_bytes());
        // Neither a nonce nor an HMAC.
        self.authorizations.extend([0, 0, attributes, 0, 0]);
        self
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.parameters.push(value);
        self
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.parameters.extend(value.to_be_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.parameters.extend(value.to_be_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.parameters.extend(bytes);
        self
    }

    /// A `TPM2B`. What is longer than one can be makes a command that the TPM refuses.
    pub(super) fn sized(self, content: &[u8]) -> Self {
        self.u16(u16::try_from(content.len()).unwrap_or(u16::MAX))
            .bytes(content)
    }

    pub(super) fn has_sessions(&self) -> bool {
        !self.authorizations.is_empty()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        if !self.has_sessions() {
            let body = [self.handles.as_slice(), &self.parameters].concat();
            return frame(NO_SESSIONS, self.code, &body);
        }
        // Two authorizations at most.
        let length = u32::try_from(self.authorizations.len()).unwrap_or(u32::MAX);
        let body = [
            self.handles.as_slice(),
            &length.to_be_bytes(),
            &self.authorizations,
            &self.parameters,
        ]
        .concat();
        frame(SESSIONS, self.code, &body)
    }
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A `TPM2B`.
    pub(super) fn sized(&mut self) -> Option<&'b [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'b [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorizations_stand_between_handles_and_parameters() {
        let plain = Command::new(0x0165).u32(0x8000_0001).to_bytes();
        assert_eq!(plain, [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65, 0x80, 0, 0, 1]);
        let authorized = Command::new(0x0158)
            .authorized(0x8000_0001)
            .sized(&[0xaa, 0xbb])
            .to_bytes();
        let expected = [
            &[0x80, 2, 0, 0, 0, 31, 0, 0, 1, 0x58, 0x80, 0, 0, 1][..],
            // Nine bytes: TPM_RS_PW, no nonce, no attributes, no value.
            &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
            &[0, 2, 0xaa, 0xbb],
        ]
        .concat();
        assert_eq!(authorized, expected);
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let mut reader = Reader::new(&[0, 3, 1, 2]);
        assert_eq!(reader.sized(), None);
        let mut reader = Reader::new(&[0, 2, 1, 2, 9]);
        assert_eq!(reader.sized(), Some(&[1, 2][..]));
        assert_eq!(reader.u16(), None);
        assert_eq!(reader.u8(), Some(9));
        assert_eq!(reader.u8(), None);
    }
}
