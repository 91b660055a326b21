//! Salted sessions, and the policy of host IK and root secret.

use cert_chain::policy::HOST_POLICY_REF;
use tpm_wire::Operation;
use tss_esapi::Context;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Attest, Data, EccParameter, EccSignature, Name, Nonce, Public, Signature, SignatureScheme,
    SymmetricDefinition, VerifiedTicket,
};
use tss_esapi::traits::UnMarshall;
use tss_esapi::tss2_esys::TPMT_TK_VERIFIED;

use super::convert::{checked, digest, pcr_list};
use super::root::EsysRoot;
use crate::error::HardwareError;
use crate::hardware::Authorization;

/// What a session protects, besides that commands and answers have an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protect {
    /// The first parameter of the command.
    Request,
    /// The first parameter of the response.
    Response,
    /// Nothing: what is sent and received is public, and the session authorizes the command.
    Nothing,
    /// Nothing, and the command needs no authorization: the session audits it, so that the answer
    /// has an HMAC like all others.
    Audited,
}

const START: Operation = Operation("TPM2_StartAuthSession");
const AUTHORIZE: Operation = Operation("TPM2_PolicyAuthorize");
const LOAD_EXTERNAL: Operation = Operation("TPM2_LoadExternal");
const VERIFY: Operation = Operation("TPM2_VerifySignature");
pub(super) const CERTIFY: Operation = Operation("TPM2_Certify");
const FLUSH: Operation = Operation("TPM2_FlushContext");

impl EsysRoot {
    /// Runs a command in an HMAC session that is salted to the storage root key.
    pub(super) fn with_hmac_session<T>(
        &mut self,
        protect: Protect,
        command: impl FnOnce(&mut Context) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        self.with_session(SessionType::Hmac, protect, |root, session| {
            root.context.execute_with_session(Some(session), command)
        })
    }

    /// Has the host IK certify an object whose ADMIN role needs no more than its empty
    /// authorization value.
    pub(super) fn certify_with_policy(
        &mut self,
        object: KeyHandle,
        ik: KeyHandle,
        nonce: Data,
        authorization: &Authorization<'_>,
    ) -> Result<(Attest, Signature), HardwareError> {
        self.with_policy_session(Protect::Nothing, authorization, |root, session| {
            let sessions = (Some(AuthSession::Password), Some(session), None);
            root.context.execute_with_sessions(sessions, |context| {
                checked(
                    CERTIFY,
                    context.certify(object.into(), ik, nonce, SignatureScheme::Null),
                )
            })
        })
    }

    /// Runs a command in a policy session, salted likewise, that satisfies
    /// `PolicyAuthorize` with the given approval.
    pub(super) fn with_policy<T>(
        &mut self,
        protect: Protect,
        authorization: &Authorization<'_>,
        command: impl FnOnce(&mut Context) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        self.with_policy_session(protect, authorization, |root, session| {
            root.context.execute_with_session(Some(session), command)
        })
    }

    /// The same for work that executes its command in the session itself.
    pub(super) fn with_policy_session<T>(
        &mut self,
        protect: Protect,
        authorization: &Authorization<'_>,
        work: impl FnOnce(&mut Self, AuthSession) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        let ticket = self.ticket(authorization)?;
        self.with_session(SessionType::Policy, protect, |root, session| {
            root.satisfy(session, authorization, ticket)?;
            work(root, session)
        })
    }

    /// Runs `work` with a new session and flushes the session, however the work ends.
    pub(super) fn with_session<T>(
        &mut self,
        kind: SessionType,
        protect: Protect,
        work: impl FnOnce(&mut Self, AuthSession) -> Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        // The TPM has few slots for sessions.
        self.forget_prepared_session();
        let session = self.start_session(kind, protect)?;
        let result = work(self, session);
        self.then_flush(SessionHandle::from(session).into(), result)
    }

    /// A new session that is salted to the storage root key; whoever starts it flushes it.
    pub(super) fn start_session(
        &mut self,
        kind: SessionType,
        protect: Protect,
    ) -> Result<AuthSession, HardwareError> {
        let srk = self.srk()?;
        let session = checked(
            START,
            self.context.start_auth_session(
                Some(srk),
                None,
                None,
                kind,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            ),
        )?
        .ok_or(HardwareError::Response {
            operation: START,
            what: "no session",
        })?;
        let (attributes, mask) = SessionAttributesBuilder::new()
            // Flushed by whoever started it; so an error in between leaves nothing behind either.
            .with_continue_session(true)
            .with_decrypt(protect == Protect::Request)
            .with_encrypt(protect == Protect::Response)
            .with_audit(protect == Protect::Audited)
            .build();
        let result = checked(
            START,
            self.context
                .tr_sess_set_attributes(session, attributes, mask),
        );
        match result {
            Ok(()) => Ok(session),
            Err(error) => self.then_flush(SessionHandle::from(session).into(), Err(error)),
        }
    }

    /// Gives an object slot or a session back.
    pub(super) fn flush(&mut self, handle: ObjectHandle) -> Result<(), HardwareError> {
        checked(FLUSH, self.context.flush_context(handle))
    }

    /// Gives a slot back after its use. If the use failed, that error counts: where it was the
    /// connection that failed, the flush fails as well, with an error that says less.
    pub(super) fn then_flush<T>(
        &mut self,
        handle: ObjectHandle,
        result: Result<T, HardwareError>,
    ) -> Result<T, HardwareError> {
        let flushed = self.flush(handle);
        let value = result?;
        flushed?;
        Ok(value)
    }

    pub(super) fn satisfy(
        &mut self,
        session: AuthSession,
        authorization: &Authorization<'_>,
        ticket: VerifiedTicket,
    ) -> Result<(), HardwareError> {
        let approval = authorization.approval;
        let session = checked(AUTHORIZE, PolicySession::try_from(session))?;
        // With the digest given the TPM refuses here if the PCRs differ, not only at the use.
        let values = digest(Operation::POLICY_PCR, &approval.pcrs.digest())?;
        let pcrs = pcr_list(
            Operation::POLICY_PCR,
            approval.pcrs.bank(),
            approval.pcrs.pcrs(),
        )?;
        checked(
            Operation::POLICY_PCR,
            self.context.policy_pcr(session, values, pcrs),
        )?;
        let name = authorization.policy_key.name().as_bytes().to_vec();
        checked(
            AUTHORIZE,
            self.context.policy_authorize(
                session,
                digest(AUTHORIZE, &approval.policy_digest())?,
                checked(AUTHORIZE, Nonce::try_from(HOST_POLICY_REF.to_vec()))?,
                &checked(AUTHORIZE, Name::try_from(name))?,
                ticket,
            ),
        )
    }

    /// The TPM's confirmation that the operator signed the approval.
    pub(super) fn ticket(
        &mut self,
        authorization: &Authorization<'_>,
    ) -> Result<VerifiedTicket, HardwareError> {
        let approval = authorization.approval;
        let (r, s) = approval.scalars().ok_or(MALFORMED)?;
        let cached =
            cert_chain::Digest32::of(&[authorization.policy_key.as_bytes(), r, s].concat());
        if let Some(ticket) = self.tickets.get(&cached) {
            return checked(VERIFY, VerifiedTicket::try_from(*ticket));
        }
        let signed = approval.signed_digest();
        let scalar = |bytes: &[u8]| checked(VERIFY, EccParameter::try_from(bytes.to_vec()));
        let signature = checked(
            VERIFY,
            EccSignature::create(HashingAlgorithm::Sha256, scalar(r)?, scalar(s)?),
        )?;
        let key = self.load_policy_key(authorization)?;
        let ticket = checked(
            VERIFY,
            self.context.verify_signature(
                key,
                digest(VERIFY, &signed)?,
                Signature::EcDsa(signature),
            ),
        );
        let ticket = self.then_flush(key.into(), ticket)?;
        let ticket = checked(VERIFY, TPMT_TK_VERIFIED::try_from(ticket))?;
        self.tickets.insert(cached, ticket);
        checked(VERIFY, VerifiedTicket::try_from(ticket))
    }

    fn load_policy_key(
        &mut self,
        authorization: &Authorization<'_>,
    ) -> Result<KeyHandle, HardwareError> {
        let public = checked(
            LOAD_EXTERNAL,
            Public::unmarshall(authorization.policy_key.as_bytes()),
        )?;
        // A ticket from the NULL hierarchy is none (TPM 2.0 Part 3 §20.1).
        checked(
            LOAD_EXTERNAL,
            self.context.load_external_public(public, Hierarchy::Owner),
        )
    }
}

/// Approvals are checked when they are read; this one was made in another way.
const MALFORMED: HardwareError = HardwareError::Response {
    operation: AUTHORIZE,
    what: "nothing yet: the approval is malformed and",
};
