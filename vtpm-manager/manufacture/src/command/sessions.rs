//! Sessions: the manager's own, and those of the guest that make room for it.

use cert_chain::layout::NvIndex;
use tpm_wire::{HEADER, NO_SESSIONS, Operation, frame};
use tpm2_protocol::basic::{TpmHandle, TpmInt32, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bDigest, Tpm2bNonce, TpmAlgId, TpmCap, TpmCc, TpmRh, TpmSe, TpmlDigest, TpmtSymDefObject,
};
use tpm2_protocol::frame::{
    TpmContextSaveCommand, TpmGetCapabilityCommand, TpmPolicyCommandCodeCommand,
    TpmPolicyOrCommand, TpmPolicyRestartCommand, TpmPolicySecretCommand,
    TpmStartAuthSessionCommand, TpmStartAuthSessionResponse,
};

use super::{Authorization, Tpm, permanent, unmarshal};
use crate::authority::NvAuthority;
use crate::bound_session::{self, BoundSession};
use crate::error::ManufactureError;
use crate::handle::{Handle, SavedSession};
use crate::policy::{Branch, PublicationPolicy};

/// Where `TPM2_GetCapability` begins to list loaded sessions (`TPM_HT_LOADED_SESSION`).
const LOADED_SESSION_FIRST: u32 = 0x0200_0000;
const TPM_CC_CONTEXT_LOAD: u32 = 0x0000_0161;

impl Tpm<'_> {
    /// A policy session that is bound to [`NvIndex::WRITER`], without salt or encryption.
    pub(crate) fn start_policy(
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

    /// A session that takes up a slot now, if there is one.
    pub(crate) fn loaded_session(&mut self) -> Result<Option<Handle>, ManufactureError> {
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
    pub(crate) fn save_session(
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
    pub(crate) fn load_session(&mut self, saved: &SavedSession) -> Result<(), ManufactureError> {
        let operation = Operation("TPM2_ContextLoad");
        let command = frame(NO_SESSIONS, TPM_CC_CONTEXT_LOAD, &saved.0);
        self.exchange_patiently(operation, &command).map(drop)
    }

    /// Satisfies the policy of our indices anew: a use may have spent it.
    pub(crate) fn satisfy(
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
}
