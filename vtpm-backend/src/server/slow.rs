//! Commands that can take long: which they are, and what becomes of their answers.

use std::time::Duration;

use tpm_wire::{Command, NO_SESSIONS, Response, ResponseCode, frame};
use zeroize::Zeroizing;

use super::Server;
use super::interim::Work;
use crate::engine::Engine;
use crate::sockets::Connection;

/// The answer to a command that the guest was told to send again.
pub(super) struct Kept {
    command: Zeroizing<Vec<u8>>,
    response: Zeroizing<Vec<u8>>,
}

/// How a command has to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// It takes microseconds, and changes nothing that has to be durable.
    None,
    /// It may wait, for the disk for one.
    MayWait,
    /// It makes a key, which takes as long as chance has it.
    MakesKey,
}

const CREATE_PRIMARY: u32 = 0x131;
const CREATE: u32 = 0x153;
const CREATE_LOADED: u32 = 0x191;
const FLUSH_CONTEXT: u32 = 0x165;
/// `TPM_RS_PW`
const PASSWORD: [u8; 4] = [0x40, 0, 0, 9];

/// Commands that neither compute with private keys nor change permanent state: `TPM2_NV_Read`,
/// `ContextLoad`, `ContextSave`, `FlushContext`, `NV_ReadPublic`, `ReadPublic`, `StartAuthSession`,
/// `GetCapability`, `GetRandom`, `PCR_Read`, `ReadClock`, `PCR_Extend`, `PolicyGetDigest`.
const SHORT: [u32; 13] = [
    0x14e, 0x161, 0x162, 0x165, 0x169, 0x173, 0x176, 0x17a, 0x17b, 0x17e, 0x181, 0x182, 0x189,
];

impl Care {
    pub(super) fn of(code: u32) -> Self {
        match code {
            CREATE | CREATE_PRIMARY | CREATE_LOADED => Self::MakesKey,
            _ if SHORT.contains(&code) => Self::None,
            _ => Self::MayWait,
        }
    }
}

impl<E: Engine> Server<E> {
    /// Carries out a command of the VMM's guest. No response: the guest was answered meanwhile.
    pub(super) fn execute_for_guest(
        &mut self,
        data: &Connection,
        command: Zeroizing<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        if let Some(kept) = self.vmm.as_mut().and_then(|vmm| vmm.kept.take()) {
            if kept.command == command {
                return Some(kept.response.to_vec());
            }
            self.forget(&kept);
        }
        let Some(work) = self.to_be_looked_after(data, &command) else {
            return Some(self.execute(&command));
        };
        self.interim.begin(work);
        let response = Zeroizing::new(self.execute(&command));
        match self.interim.end() {
            None => return Some(response.to_vec()),
            Some(ResponseCode::CANCELED) => self.forget_answer(&response),
            Some(_) => {
                if let Some(vmm) = &mut self.vmm {
                    vmm.kept = Some(Kept { command, response });
                }
            }
        }
        None
    }

    /// An answer that nobody will ask for any more: what it names does not stay behind.
    pub(super) fn forget(&mut self, kept: &Kept) {
        self.forget_answer(&kept.response);
    }

    /// The guest never learns the handle of an object that the command loaded.
    pub(super) fn forget_answer(&mut self, response: &[u8]) {
        const TRANSIENT: u8 = 0x80;
        let succeeded = Response::parse(response).is_some_and(|found| found.code().is_success());
        let handle = response.get(10..14);
        let handle = handle.filter(|handle| succeeded && handle.first() == Some(&TRANSIENT));
        if let Some(handle) = handle {
            let flush = frame(NO_SESSIONS, FLUSH_CONTEXT, handle);
            self.engine.execute(&flush, self.locality);
        }
    }

    fn to_be_looked_after(&self, data: &Connection, command: &[u8]) -> Option<Work> {
        let parsed = Command::parse(command).ok()?;
        let patience = self.patience();
        let care = Care::of(parsed.code());
        match care {
            Care::MakesKey => {}
            Care::MayWait if patience.is_some() => {}
            Care::MayWait | Care::None => return None,
        }
        let vmm = self.vmm.as_ref().filter(|vmm| !vmm.has_begun_request());
        let control = vmm.map(|vmm| &vmm.control);
        let can_be_given_up = care == Care::MakesKey && has_password_alone(&parsed);
        let canceller = self.engine.canceller();
        Work::new(data, control, canceller, can_be_given_up, patience)
            .inspect_err(|error| tracing::warn!(%error, "a command is not looked after"))
            .ok()
    }

    /// For how long a VMM waits for an answer to a command, if it does not wait for each.
    fn patience(&self) -> Option<Duration> {
        match self.keeper.manager() {
            Some(link) => link.answer_within(),
            None => self.answer_within,
        }
    }
}

/// Whether a password authorizes the command, and no session goes on with it: a command that makes
/// a key has one handle, then the size of the authorization area, then sessions (Part 1 §18).
fn has_password_alone(command: &Command<'_>) -> bool {
    let area = || {
        let (size, rest) = command.parameters().get(4..)?.split_first_chunk()?;
        let area = rest.get(..usize::try_from(u32::from_be_bytes(*size)).ok()?)?;
        // Handle, empty nonce, attributes, then a value of this length and nothing else.
        let (length, value) = area.get(7..)?.split_first_chunk()?;
        let is_all = value.len() == usize::from(u16::from_be_bytes(*length));
        Some(area.starts_with(&PASSWORD) && area.get(4..6) == Some(&[0, 0]) && is_all)
    };
    !command.is_without_sessions() && area().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use tpm_wire::SESSIONS;

    use super::*;

    fn creation(area: &[u8]) -> Vec<u8> {
        let size = u32::try_from(area.len()).unwrap().to_be_bytes();
        let body = [&[0x40, 0, 0, 1], &size[..], area, &[0; 8]].concat();
        frame(SESSIONS, CREATE_PRIMARY, &body)
    }

    #[test]
    fn a_guest_that_uses_a_session_is_not_answered_ahead_of_the_tpm() {
        let password = [0x40, 0, 0, 9, 0, 0, 1, 0, 2, 7, 7];
        let session = [3, 0, 0, 0, 0, 0, 1, 0, 0];
        let both = [&password[..], &session].concat();
        for (area, expected) in [
            (&password[..], true),
            (&session, false),
            (&both, false),
            (&password[..10], false),
            (&[], false),
        ] {
            let command = creation(area);
            let command = Command::parse(&command).unwrap();
            assert_eq!(has_password_alone(&command), expected, "{area:?}");
        }
    }
}
