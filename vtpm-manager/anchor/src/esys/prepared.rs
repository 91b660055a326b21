//! The session of the next quote, made ready while the TPM has nothing else to do.
//!
//! A quote needs the policy of the host IK, and that takes four commands beside the quote itself; to open
//! a salted session, the TPM computes on an elliptic curve, as it does for a signature. None of it depends
//! on what is quoted. So whoever waits for a quote waits for `TPM2_Quote` alone.
//!
//! That the host still runs as approved, the TPM checks at the quote: a session is of no use any more once
//! a PCR was extended after `TPM2_PolicyPCR` (TPM 2.0 Part 3 §23.7, `TPM_RC_PCR_CHANGED`). After a quote it
//! is as new (Part 1 §19.7), so it is kept.

use cert_chain::HashAlgorithm;
use tpm_wire::Disposition;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::SessionHandle;
use tss_esapi::interface_types::session_handles::AuthSession;

use super::root::EsysRoot;
use super::session::Protect;
use crate::error::HardwareError;
use crate::hardware::Authorization;

/// A policy session for the host IK.
pub(super) struct PreparedSession {
    session: AuthSession,
    /// The bank of the approval that it satisfies the policy with, if it does.
    satisfied: Option<HashAlgorithm>,
}

/// PCRs 16 and 21 to 23 may change without the counter by which a TPM notices that (PC Client Platform
/// TPM Profile §4.6): a policy of those is satisfied when it is used.
const FIRST_WITHOUT_COUNTER: u8 = 16;

impl EsysRoot {
    /// Prepares a session that satisfies the host IK's policy, if there is none.
    pub(super) fn prepare_session(
        &mut self,
        authorization: &Authorization<'_>,
    ) -> Result<(), HardwareError> {
        let approved = &authorization.approval.pcrs;
        if approved.pcrs().any(|pcr| pcr >= FIRST_WITHOUT_COUNTER) {
            return Ok(());
        }
        let ticket = self.ticket(authorization)?;
        let session = match self.prepared.take() {
            Some(ready) if ready.satisfied.is_some() => {
                self.prepared = Some(ready);
                return Ok(());
            }
            Some(PreparedSession { session, .. }) => session,
            None => self.start_session(SessionType::Policy, Protect::Nothing)?,
        };
        match self.satisfy(session, authorization, ticket) {
            Ok(()) => {
                self.prepared = Some(PreparedSession {
                    session,
                    satisfied: Some(approved.bank()),
                });
                Ok(())
            }
            Err(error) => self.then_flush(SessionHandle::from(session).into(), Err(error)),
        }
    }

    /// Runs a command in the prepared session, for the bank of its approval; `None` if there is none, or if
    /// the TPM refuses the command in it.
    pub(super) fn in_prepared_session<T>(
        &mut self,
        command: impl FnOnce(&mut Self, AuthSession, HashAlgorithm) -> Result<T, HardwareError>,
    ) -> Result<Option<T>, HardwareError> {
        let Some(PreparedSession { session, satisfied }) = self.prepared.take() else {
            return Ok(None);
        };
        let Some(bank) = satisfied else {
            self.prepared = Some(PreparedSession { session, satisfied });
            return Ok(None);
        };
        match command(self, session, bank) {
            Ok(value) => {
                self.prepared = Some(PreparedSession {
                    session,
                    satisfied: None,
                });
                Ok(Some(value))
            }
            Err(error) if error.disposition() == Disposition::ConnectionLost => Err(error),
            // A PCR was extended, or a TPM reset has ended the session; then it is gone already.
            Err(error @ HardwareError::Tpm { .. }) => {
                tracing::debug!(%error, "what was prepared for a quote does not hold any more");
                drop(self.flush(SessionHandle::from(session).into()));
                Ok(None)
            }
            Err(error) => {
                drop(self.flush(SessionHandle::from(session).into()));
                Err(error)
            }
        }
    }

    /// Gives the prepared session's slot back. One that a TPM reset has ended is gone already.
    pub(super) fn forget_prepared_session(&mut self) {
        if let Some(PreparedSession { session, .. }) = self.prepared.take() {
            drop(self.flush(SessionHandle::from(session).into()));
        }
    }
}
