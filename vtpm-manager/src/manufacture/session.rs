//! The session in which indices are written, also where the guest leaves no slot for it.
//!
//! An index has one authorization value for reading and for writing. As everybody reads with the
//! empty one, writing takes a policy, and that a session. A TPM has few slots for sessions, and a
//! guest may hold them all for as long as it likes. Then the guest waits a moment while one of its
//! sessions is put aside with `TPM2_ContextSave`, and back with `TPM2_ContextLoad` when the index
//! is written: with the same handle and the same contents (TPM 2.0 Part 1 §30.3).
//!
//! A guest that has begun as many sessions as a TPM can number, loaded or not, gets no new
//! certificate until it ends one.

use super::command::{Handle, SavedSession, Tpm};
use super::error::ManufactureError;
use crate::anchor::ResponseCode;

/// A policy session of the manager's, to be closed in any case.
pub(super) struct WriterSession {
    handle: Handle,
    /// What was in its slot, if the guest waits for that.
    aside: Option<SavedSession>,
}

impl WriterSession {
    /// Starts a session, for which one of the guest's makes room if it must.
    pub(super) fn open(tpm: &mut Tpm<'_>) -> Result<Self, ManufactureError> {
        match tpm.start_policy() {
            Ok(handle) => Ok(Self {
                handle,
                aside: None,
            }),
            // The guest had time to end one of its own.
            Err(ManufactureError::Tpm { code, .. }) if code == ResponseCode::SESSION_MEMORY => {
                tpm.hold(true)?;
                let opened = Self::open_in_the_place_of_another(tpm);
                if opened.is_err() {
                    tpm.hold(false)?;
                }
                opened
            }
            Err(error) => Err(error),
        }
    }

    fn open_in_the_place_of_another(tpm: &mut Tpm<'_>) -> Result<Self, ManufactureError> {
        let Some(session) = tpm.loaded_session()? else {
            // It ended just now.
            let handle = tpm.start_policy()?;
            tpm.hold(false)?;
            return Ok(Self {
                handle,
                aside: None,
            });
        };
        let aside = tpm.save_session(session)?;
        match tpm.start_policy() {
            Ok(handle) => Ok(Self {
                handle,
                aside: Some(aside),
            }),
            Err(error) => {
                tpm.load_session(&aside)?;
                Err(error)
            }
        }
    }

    /// The session.
    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Ends the session, and gives the guest back what is the guest's.
    pub(super) fn close(self, tpm: &mut Tpm<'_>) -> Result<(), ManufactureError> {
        let flushed = tpm.flush(self.handle);
        let Some(aside) = self.aside else {
            return flushed;
        };
        let restored = tpm.load_session(&aside);
        tpm.hold(false)?;
        restored?;
        flushed
    }
}
