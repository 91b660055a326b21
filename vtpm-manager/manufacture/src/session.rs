//! The session in which indices are written, also where the guest leaves no slot for it.
//!
//! An index has one authorization value for reading and for writing. As everybody reads with the
//! empty one, writing takes a policy, and that a session. The guest waits while the manager uses it.
//! A TPM has few slots for sessions, and a guest may hold them all for as long as it likes: then one
//! of its sessions is put aside with `TPM2_ContextSave`, and back with `TPM2_ContextLoad` when the index
//! is written: with the same handle and the same contents (TPM 2.0 Part 1 §30.3).
//!
//! A guest that has begun as many sessions as a TPM can number, loaded or not, gets no new
//! certificate until it ends one.

use tpm_wire::ResponseCode;

use super::authority::NvAuthority;
use super::bound_session::BoundSession;
use super::command::Tpm;
use super::error::ManufactureError;
use super::handle::{Handle, SavedSession};

/// A policy session of the manager's, to be closed in any case. Between both the guest waits: what
/// the manager does in it is one sequence.
pub(super) struct WriterSession {
    bound: BoundSession,
    /// What was in its slot, if the guest waits for that.
    aside: Option<SavedSession>,
}

impl WriterSession {
    /// Starts a session, for which one of the guest's makes room if it must.
    pub(super) fn open(
        tpm: &mut Tpm<'_>,
        authority: &NvAuthority,
    ) -> Result<Self, ManufactureError> {
        tpm.hold(true)?;
        let opened = Self::open_while_the_guest_waits(tpm, authority);
        if opened.is_err() {
            tpm.hold(false)?;
        }
        opened
    }

    fn open_while_the_guest_waits(
        tpm: &mut Tpm<'_>,
        authority: &NvAuthority,
    ) -> Result<Self, ManufactureError> {
        let without = |bound| Self { bound, aside: None };
        match tpm.start_policy(authority) {
            Err(ManufactureError::Tpm { code, .. }) if code == ResponseCode::SESSION_MEMORY => {}
            other => return other.map(without),
        }
        let Some(session) = tpm.loaded_session()? else {
            // It ended just now.
            return tpm.start_policy(authority).map(without);
        };
        let aside = tpm.save_session(session)?;
        match tpm.start_policy(authority) {
            Ok(bound) => Ok(Self {
                bound,
                aside: Some(aside),
            }),
            Err(error) => {
                tpm.load_session(&aside)?;
                Err(error)
            }
        }
    }

    /// The handle of the session.
    pub(super) fn handle(&self) -> Handle {
        self.bound.handle()
    }

    /// The session, to prove a use of it.
    pub(super) fn bound(&mut self) -> &mut BoundSession {
        &mut self.bound
    }

    /// Ends the session, and gives the guest back what is the guest's.
    pub(super) fn close(self, tpm: &mut Tpm<'_>) -> Result<(), ManufactureError> {
        let flushed = tpm.flush(self.bound.handle());
        let restored = match &self.aside {
            Some(aside) => tpm.load_session(aside),
            None => Ok(()),
        };
        tpm.hold(false)?;
        restored?;
        flushed
    }
}
