//! The TPM commands that manufacture needs, over any [`CommandChannel`].
//!
//! No salted sessions here: the channel is a socket of the vRoT's own process that only its
//! manager can reach, and not a bus.

mod banks;
mod indices;
mod keys;
mod sessions;

use std::time::Duration;

use tpm_wire::{Disposition, HEADER, MAX_SIZE, Operation, Response, ResponseCode};
use tpm2_protocol::TpmWriter;
use tpm2_protocol::basic::{TpmHandle, TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bNonce, TpmCap, TpmRh, TpmSt, TpmSu, TpmaSession, TpmiYesNo, TpmsAuthCommand,
};
use tpm2_protocol::frame::{
    TpmClearCommand, TpmClearControlCommand, TpmFrame, TpmGetCapabilityCommand, TpmResponse,
    TpmShutdownCommand, TpmStartupCommand, TpmUnmarshalBody, tpm_marshal_command,
};

use super::authority::{NV_AUTHORITY_LENGTH, NvAuthority};
use super::bound_session::BoundSession;
use super::channel::CommandChannel;
use super::error::ManufactureError;

/// A vRoT to which commands can be sent.
pub(super) struct Tpm<'c> {
    channel: &'c mut dyn CommandChannel,
}

/// How a command is authorized.
enum Authorization<'a> {
    /// An empty authorization value: hierarchies before they have an owner, certificate indices.
    Empty,
    /// The manager's authorization value.
    Writer(&'a NvAuthority),
}

/// A guest may hold the vRoT busy, or all of its slots: half a second, then the
/// caller decides when to try again.
const BUSY_ATTEMPTS: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(8);

impl<'c> Tpm<'c> {
    pub(super) fn new(channel: &'c mut dyn CommandChannel) -> Self {
        Self { channel }
    }

    /// `TPM2_Startup(CLEAR)`; it is no error if that was done before.
    pub(super) fn start_up(&mut self) -> Result<(), ManufactureError> {
        let command = TpmStartupCommand {
            handles: [],
            startup_type: TpmSu::Clear,
        };
        match self.send(Operation("TPM2_Startup"), &command, &[]) {
            Err(ManufactureError::Tpm { code, .. }) if code == ResponseCode::INITIALIZE => Ok(()),
            other => other.map(drop),
        }
    }

    /// `TPM2_Shutdown(CLEAR)`: what was made is in permanent memory.
    pub(super) fn shut_down(&mut self) -> Result<(), ManufactureError> {
        let command = TpmShutdownCommand {
            handles: [],
            shutdown_type: TpmSu::Clear,
        };
        self.send(Operation("TPM2_Shutdown"), &command, &[])
            .map(drop)
    }

    /// `TPM2_Clear` by the platform: takes off whatever an owner set, and leaves the endorsement
    /// seed as it is (TPM 2.0 Part 3 §24.6).
    pub(super) fn clear(&mut self) -> Result<(), ManufactureError> {
        let platform = permanent(TpmRh::Platform);
        let allow = TpmClearControlCommand {
            handles: [platform],
            disable: TpmiYesNo::from(false),
        };
        let operation = Operation("TPM2_ClearControl");
        self.run(operation, &allow, &Authorization::Empty)?;
        let clear = TpmClearCommand {
            handles: [platform],
        };
        self.run(Operation("TPM2_Clear"), &clear, &Authorization::Empty)
    }

    /// A property of the TPM (`TPM_PT`, TPM 2.0 Part 2 §6.13).
    pub(super) fn property(&mut self, property: u32) -> Result<u32, ManufactureError> {
        let operation = Operation("TPM2_GetCapability");
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap: TpmCap::TpmProperties,
            property: TpmUint32::from(property),
            property_count: TpmUint32::from(1),
        };
        let response = self.send(operation, &command, &[])?;
        // moreData, capability and count, then one TPMS_TAGGED_PROPERTY.
        let word = |at: usize| {
            let bytes = response.get(at..)?.first_chunk()?;
            Some(u32::from_be_bytes(*bytes))
        };
        let found = HEADER + 1 + 4 + 4;
        if word(found) == Some(property)
            && let Some(value) = word(found + 4)
        {
            Ok(value)
        } else {
            Err(ManufactureError::Response { operation })
        }
    }

    /// Has the guest wait, or lets it go on.
    pub(super) fn hold(&mut self, held: bool) -> Result<(), ManufactureError> {
        let operation = Operation("having the guest wait");
        self.channel
            .hold(held)
            .map_err(|source| ManufactureError::Connection { operation, source })
    }

    /// Runs a command of our own session, which a proof goes with; `names` are those of the
    /// entities that its handles mean. Only for commands without response parameters.
    fn run_in(
        &mut self,
        operation: Operation,
        command: &impl TpmFrame,
        session: &mut BoundSession,
        names: &[Vec<u8>],
        second: Option<TpmsAuthCommand>,
    ) -> Result<(), ManufactureError> {
        let malformed = || ManufactureError::Response { operation };
        let mut buffer = zeroize::Zeroizing::new([0; MAX_SIZE]);
        let mut writer = TpmWriter::new(buffer.as_mut());
        tpm_marshal_command(command, TpmSt::NoSessions, &[], &mut writer)
            .map_err(|_| malformed())?;
        let plain = writer.as_bytes();
        // Tag and size come before the code, and a handle for each name after it.
        let code = plain.get(6..HEADER).ok_or_else(malformed)?;
        let handles = names.len().saturating_mul(size_of::<u32>());
        let parameters = plain
            .get(HEADER.saturating_add(handles)..)
            .ok_or_else(malformed)?;
        let proof = session.prove(code, names, parameters)?;
        let own = TpmsAuthCommand {
            session_handle: TpmHandle::new(session.handle().0),
            nonce: Tpm2bNonce::try_from(proof.nonce_caller.as_slice()).map_err(|_| malformed())?,
            session_attributes: TpmaSession::CONTINUE_SESSION,
            hmac: Tpm2bAuth::try_from(proof.hmac.as_ref()).map_err(|_| malformed())?,
        };
        let sessions: Vec<TpmsAuthCommand> = [own].into_iter().chain(second).collect();
        let response = self.send(operation, command, &sessions)?;
        // The size of no parameters, then the first session's nonce.
        let nonce = response
            .get(HEADER + size_of::<u32>()..)
            .and_then(|sessions| sessions.split_first_chunk())
            .and_then(|(length, rest)| rest.get(..u16::from_be_bytes(*length).into()))
            .ok_or_else(malformed)?;
        session.rolled(nonce);
        Ok(())
    }

    fn run(
        &mut self,
        operation: Operation,
        command: &impl TpmFrame,
        authorization: &Authorization<'_>,
    ) -> Result<(), ManufactureError> {
        let session = authorization.session(operation)?;
        self.send(operation, command, &[session]).map(drop)
    }

    fn ask<R: TpmUnmarshalBody>(
        &mut self,
        operation: Operation,
        command: &impl TpmFrame,
        authorization: &Authorization<'_>,
    ) -> Result<R, ManufactureError> {
        let session = authorization.session(operation)?;
        let response = self.send(operation, command, &[session])?;
        unmarshal(operation, &response)
    }

    /// Sends a command, again while the TPM is busy; the response is a successful one.
    fn send(
        &mut self,
        operation: Operation,
        command: &impl TpmFrame,
        sessions: &[TpmsAuthCommand],
    ) -> Result<Vec<u8>, ManufactureError> {
        let mut buffer = zeroize::Zeroizing::new([0; MAX_SIZE]);
        let mut writer = TpmWriter::new(buffer.as_mut());
        let tag = if sessions.is_empty() {
            TpmSt::NoSessions
        } else {
            TpmSt::Sessions
        };
        tpm_marshal_command(command, tag, sessions, &mut writer)
            .map_err(|_| ManufactureError::Response { operation })?;
        self.exchange_patiently(operation, writer.as_bytes())
    }

    fn exchange_patiently(
        &mut self,
        operation: Operation,
        command: &[u8],
    ) -> Result<Vec<u8>, ManufactureError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..BUSY_ATTEMPTS {
            match self.exchange(operation, command) {
                Err(ManufactureError::Tpm { code, .. })
                    if code.disposition() == Disposition::TryAgain =>
                {
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2);
                }
                other => return other,
            }
        }
        self.exchange(operation, command)
    }

    fn exchange(
        &mut self,
        operation: Operation,
        command: &[u8],
    ) -> Result<Vec<u8>, ManufactureError> {
        let response = self
            .channel
            .execute(command)
            .map_err(|source| ManufactureError::Connection { operation, source })?;
        let malformed = ManufactureError::Response { operation };
        let code = Response::parse(&response).ok_or(malformed)?.code();
        if code.is_success() {
            Ok(response)
        } else {
            Err(ManufactureError::Tpm { operation, code })
        }
    }
}

impl Authorization<'_> {
    fn session(&self, operation: Operation) -> Result<TpmsAuthCommand, ManufactureError> {
        let (handle, secret): (u32, &[u8]) = match self {
            Self::Empty => (TpmRh::Pw.value(), &[]),
            Self::Writer(authority) => {
                let secret: &[u8; NV_AUTHORITY_LENGTH] = authority.expose();
                (TpmRh::Pw.value(), secret)
            }
        };
        Ok(TpmsAuthCommand {
            session_handle: TpmHandle::new(handle),
            nonce: Default::default(),
            session_attributes: TpmaSession::CONTINUE_SESSION,
            hmac: Tpm2bAuth::try_from(secret)
                .map_err(|_| ManufactureError::Response { operation })?,
        })
    }
}

fn unmarshal<R: TpmUnmarshalBody>(
    operation: Operation,
    response: &[u8],
) -> Result<R, ManufactureError> {
    TpmResponse::cast(response)
        .and_then(TpmResponse::unmarshal)
        .map_err(|_| ManufactureError::Response { operation })
}

fn permanent(handle: TpmRh) -> TpmHandle {
    TpmHandle::new(handle.value())
}

fn short(operation: Operation, number: usize) -> Result<TpmUint16, ManufactureError> {
    u16::try_from(number)
        .map(TpmUint16::from)
        .map_err(|_| ManufactureError::Response { operation })
}
