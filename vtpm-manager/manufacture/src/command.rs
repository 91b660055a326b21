//! The TPM commands that manufacture needs, over any [`CommandChannel`].
//!
//! No salted sessions here: the channel is a socket of the vRoT's own process that only its
//! manager can reach, and not a bus.

use std::time::Duration;

use cert_chain::PublicArea;
use tpm_wire::{
    Disposition, HEADER, MAX_SIZE, NO_SESSIONS, Operation, Response, ResponseCode, frame,
};
use tpm2_protocol::basic::{TpmHandle, TpmInt32, TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bDigest, Tpm2bMaxNvBuffer, Tpm2bNonce, Tpm2bNvPublic, Tpm2bPublic, TpmAlgId,
    TpmCap, TpmCc, TpmRh, TpmSe, TpmSt, TpmSu, TpmaNv, TpmaSession, TpmiYesNo, TpmlDigest,
    TpmsAuthCommand, TpmsNvPublic, TpmtPublic, TpmtSymDefObject,
};
use tpm2_protocol::frame::{
    TpmClearCommand, TpmClearControlCommand, TpmContextSaveCommand, TpmCreatePrimaryCommand,
    TpmCreatePrimaryResponse, TpmEvictControlCommand, TpmFlushContextCommand, TpmFrame,
    TpmGetCapabilityCommand, TpmNvDefineSpaceCommand, TpmNvReadCommand, TpmNvReadPublicCommand,
    TpmNvReadPublicResponse, TpmNvReadResponse, TpmNvUndefineSpaceSpecialCommand,
    TpmNvWriteCommand, TpmPolicyCommandCodeCommand, TpmPolicyOrCommand, TpmPolicyRestartCommand,
    TpmPolicySecretCommand, TpmResponse, TpmShutdownCommand, TpmStartAuthSessionCommand,
    TpmStartAuthSessionResponse, TpmStartupCommand, TpmUnmarshalBody, tpm_marshal_command,
};
use tpm2_protocol::{TpmMarshal, TpmUnmarshal, TpmWriter};

use super::bound_session::{self, BoundSession};
use super::channel::CommandChannel;
use super::error::ManufactureError;
use super::layout::{NvIndex, VIK_HANDLE};
use super::policy::{Branch, PublicationPolicy};
use super::{NV_AUTHORITY_LENGTH, NvAuthority};

/// A vRoT to which commands can be sent.
pub(super) struct Tpm<'c> {
    channel: &'c mut dyn CommandChannel,
}

/// A key that was made from a template and is loaded.
pub(super) struct Primary {
    pub(super) handle: Handle,
    pub(super) public: PublicArea,
}

/// A transient object or session of the vRoT.
#[derive(Clone, Copy)]
pub(super) struct Handle(u32);

/// A session of the guest outside its slot.
pub(super) struct SavedSession(Vec<u8>);

/// How a command is authorized.
enum Authorization<'a> {
    /// An empty authorization value: hierarchies before they have an owner, certificate indices.
    Empty,
    /// The manager's authorization value.
    Writer(&'a NvAuthority),
}

/// Where `TPM2_GetCapability` begins to list loaded sessions (`TPM_HT_LOADED_SESSION`).
const LOADED_SESSION_FIRST: u32 = 0x0200_0000;
const TPM_CC_CONTEXT_LOAD: u32 = 0x0000_0161;
/// Longest chunk of one `TPM2_NV_Read` or `TPM2_NV_Write` (`TPM_PT_NV_BUFFER_MAX` of libtpms).
pub(super) const MAX_CHUNK: usize = 1024;
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

    /// Makes a primary key in the endorsement hierarchy.
    pub(super) fn create_primary(&mut self, template: &[u8]) -> Result<Primary, ManufactureError> {
        let operation = Operation("TPM2_CreatePrimary");
        let malformed = || ManufactureError::Response { operation };
        let (template, _) = TpmtPublic::unmarshal(template).map_err(|_| malformed())?;
        let command = TpmCreatePrimaryCommand {
            handles: [permanent(TpmRh::Endorsement)],
            in_sensitive: Default::default(),
            in_public: Tpm2bPublic { inner: template },
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let response: TpmCreatePrimaryResponse =
            self.ask(operation, &command, &Authorization::Empty)?;
        let mut buffer = [0; MAX_SIZE];
        let mut writer = TpmWriter::new(&mut buffer);
        response
            .out_public
            .inner
            .marshal(&mut writer)
            .map_err(|_| malformed())?;
        let public = PublicArea::parse(writer.as_bytes())
            .map_err(|source| ManufactureError::PublicArea { operation, source })?;
        let [handle] = response.handles;
        Ok(Primary {
            handle: Handle(handle.value()),
            public,
        })
    }

    /// Gives a slot back.
    pub(super) fn flush(&mut self, handle: Handle) -> Result<(), ManufactureError> {
        let command = TpmFlushContextCommand {
            handles: [],
            flush_handle: TpmHandle::new(handle.0),
        };
        self.send(Operation("TPM2_FlushContext"), &command, &[])
            .map(drop)
    }

    /// Makes the vIK persistent.
    pub(super) fn keep_vik(&mut self, key: Handle) -> Result<(), ManufactureError> {
        let command = TpmEvictControlCommand {
            handles: [permanent(TpmRh::Owner), TpmHandle::new(key.0)],
            persistent_handle: TpmHandle::new(VIK_HANDLE),
        };
        self.run(
            Operation("TPM2_EvictControl"),
            &command,
            &Authorization::Empty,
        )
    }

    /// Defines an index with the platform's authorization.
    pub(super) fn define(
        &mut self,
        authority: Option<&NvAuthority>,
        public: TpmsNvPublic,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_DefineSpace");
        let auth: &[u8] = authority.map_or(&[], |authority| authority.expose());
        let command = TpmNvDefineSpaceCommand {
            handles: [permanent(TpmRh::Platform)],
            auth: Tpm2bAuth::try_from(auth)
                .map_err(|_| ManufactureError::Response { operation })?,
            public_info: Tpm2bNvPublic { inner: public },
        };
        self.run(operation, &command, &Authorization::Empty)
    }

    /// Size of an index.
    pub(super) fn size_of(&mut self, index: NvIndex) -> Result<usize, ManufactureError> {
        let public = self.read_public(index)?;
        Ok(public.nv_public.inner.data_size.value().into())
    }

    /// Size of an index without content; none, if it has some.
    pub(super) fn reserved(&mut self, index: NvIndex) -> Result<Option<usize>, ManufactureError> {
        let public = self.read_public(index)?.nv_public.inner;
        let is_written = public.attributes.contains(TpmaNv::WRITTEN);
        Ok((!is_written).then(|| public.data_size.value().into()))
    }

    /// Name of an index, which changes with its first write.
    fn name_of(&mut self, index: NvIndex) -> Result<Vec<u8>, ManufactureError> {
        Ok(self.read_public(index)?.nv_name.to_vec())
    }

    fn read_public(&mut self, index: NvIndex) -> Result<TpmNvReadPublicResponse, ManufactureError> {
        let operation = Operation("TPM2_NV_ReadPublic");
        let command = TpmNvReadPublicCommand {
            handles: [TpmHandle::new(index.handle())],
        };
        let response = self.send(operation, &command, &[])?;
        unmarshal(operation, &response)
    }

    /// Reads a part of an index with the index's own, empty authorization.
    pub(super) fn read(
        &mut self,
        index: NvIndex,
        offset: usize,
        length: usize,
    ) -> Result<Vec<u8>, ManufactureError> {
        let operation = Operation("TPM2_NV_Read");
        let handle = TpmHandle::new(index.handle());
        let command = TpmNvReadCommand {
            handles: [handle, handle],
            size: short(operation, length)?,
            offset: short(operation, offset)?,
        };
        let response: TpmNvReadResponse = self.ask(operation, &command, &Authorization::Empty)?;
        Ok(response.data.to_vec())
    }

    /// Writes a part of an index in a session that satisfies the index's policy.
    pub(super) fn write(
        &mut self,
        index: NvIndex,
        offset: usize,
        chunk: &[u8],
        session: &mut BoundSession,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_Write");
        let handle = TpmHandle::new(index.handle());
        let name = self.name_of(index)?;
        let command = TpmNvWriteCommand {
            handles: [handle, handle],
            data: Tpm2bMaxNvBuffer::try_from(chunk)
                .map_err(|_| ManufactureError::Response { operation })?,
            offset: short(operation, offset)?,
        };
        self.run_in(operation, &command, session, &[name.clone(), name], None)
    }

    /// A policy session that is bound to [`NvIndex::WRITER`], without salt or encryption.
    pub(super) fn start_policy(
        &mut self,
        authority: &NvAuthority,
    ) -> Result<BoundSession, ManufactureError> {
        let operation = Operation("TPM2_StartAuthSession");
        let writer = TpmHandle::new(NvIndex::WRITER.handle());
        let nonce_caller = bound_session::nonce()?;
        let command = TpmStartAuthSessionCommand {
            handles: [permanent(TpmRh::Null), writer],
            nonce_caller: Tpm2bNonce::try_from(nonce_caller.as_slice())
                .map_err(|_| ManufactureError::Response { operation })?,
            encrypted_salt: Default::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDefObject::default(),
            auth_hash: TpmAlgId::Sha256,
        };
        let response = self.send(operation, &command, &[])?;
        let response: TpmStartAuthSessionResponse = unmarshal(operation, &response)?;
        let [session] = response.handles;
        let handle = Handle(session.value());
        let nonce_tpm = &response.nonce_tpm;
        Ok(BoundSession::new(
            handle,
            authority,
            &nonce_caller,
            nonce_tpm,
        ))
    }

    /// Has the guest wait, or lets it go on.
    pub(super) fn hold(&mut self, held: bool) -> Result<(), ManufactureError> {
        let operation = Operation("having the guest wait");
        self.channel
            .hold(held)
            .map_err(|source| ManufactureError::Connection { operation, source })
    }

    /// A session that takes up a slot now, if there is one.
    pub(super) fn loaded_session(&mut self) -> Result<Option<Handle>, ManufactureError> {
        let operation = Operation("TPM2_GetCapability");
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap: TpmCap::Handles,
            property: TpmUint32::from(LOADED_SESSION_FIRST),
            property_count: TpmUint32::from(1),
        };
        let response = self.send(operation, &command, &[])?;
        // moreData, capability and count, then the handles.
        let word = |at: usize| {
            let bytes = response.get(at..)?.first_chunk()?;
            Some(u32::from_be_bytes(*bytes))
        };
        let count = HEADER + 1 + 4;
        match (word(count), word(count + 4)) {
            (Some(0), _) => Ok(None),
            (Some(_), Some(handle)) => Ok(Some(Handle(handle))),
            _ => Err(ManufactureError::Response { operation }),
        }
    }

    /// Takes a session out of its slot. It keeps its handle, and can be loaded once.
    pub(super) fn save_session(
        &mut self,
        session: Handle,
    ) -> Result<SavedSession, ManufactureError> {
        let operation = Operation("TPM2_ContextSave");
        let command = TpmContextSaveCommand {
            handles: [TpmHandle::new(session.0)],
        };
        let response = self.send(operation, &command, &[])?;
        // As it came: it is the TPM's own business what is in it.
        let context = response.get(HEADER..).unwrap_or_default();
        Ok(SavedSession(context.to_vec()))
    }

    /// Puts a session back into a slot.
    pub(super) fn load_session(&mut self, saved: &SavedSession) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_ContextLoad");
        let command = frame(NO_SESSIONS, TPM_CC_CONTEXT_LOAD, &saved.0);
        self.exchange_patiently(operation, &command).map(drop)
    }

    /// Satisfies the policy of our indices anew: a use may have spent it.
    pub(super) fn satisfy(
        &mut self,
        session: Handle,
        authority: &NvAuthority,
        policy: &PublicationPolicy,
        branch: Branch,
    ) -> Result<(), ManufactureError> {
        let handle = TpmHandle::new(session.0);
        let restart = TpmPolicyRestartCommand { handles: [handle] };
        self.send(Operation("TPM2_PolicyRestart"), &restart, &[])?;
        let secret = TpmPolicySecretCommand {
            handles: [TpmHandle::new(NvIndex::WRITER.handle()), handle],
            nonce_tpm: Default::default(),
            cp_hash_a: Default::default(),
            policy_ref: Default::default(),
            expiration: TpmInt32::from(0),
        };
        self.run(
            Operation("TPM2_PolicySecret"),
            &secret,
            &Authorization::Writer(authority),
        )?;
        if branch == Branch::Remove {
            let code = TpmPolicyCommandCodeCommand {
                handles: [handle],
                code: TpmCc::NvUndefineSpaceSpecial,
            };
            self.send(Operation("TPM2_PolicyCommandCode"), &code, &[])?;
        }
        let operation = Operation("TPM2_PolicyOR");
        let mut branches = TpmlDigest::new();
        for digest in policy.branches() {
            let digest = Tpm2bDigest::try_from(digest.as_slice());
            let digest = digest.map_err(|_| ManufactureError::Response { operation })?;
            branches
                .try_push(digest)
                .map_err(|_| ManufactureError::Response { operation })?;
        }
        let either = TpmPolicyOrCommand {
            handles: [handle],
            p_hash_list: branches,
        };
        self.send(operation, &either, &[]).map(drop)
    }

    /// Removes an index, with the platform's authorization and a session that satisfies the
    /// index's policy for that.
    pub(super) fn undefine(
        &mut self,
        index: NvIndex,
        session: &mut BoundSession,
    ) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_NV_UndefineSpaceSpecial");
        let platform = TpmRh::Platform.value().to_be_bytes().to_vec();
        let names = [self.name_of(index)?, platform];
        let command = TpmNvUndefineSpaceSpecialCommand {
            handles: [TpmHandle::new(index.handle()), permanent(TpmRh::Platform)],
        };
        let platform = Authorization::Empty.session(operation)?;
        self.run_in(operation, &command, session, &names, Some(platform))
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
