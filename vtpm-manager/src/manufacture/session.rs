//! The session in which indices are written, also where the guest leaves no slot for it.
//!
//! An index has one authorization value for reading and for writing. As everybody reads with the
//! empty one, writing takes a policy, and that a session. A TPM has few slots for sessions, and a
//! guest may hold them all for as long as it likes. Then one of its sessions is put aside with
//! `TPM2_ContextSave` and back with `TPM2_ContextLoad` when the index is written: it has the same
//! handle and the same contents as before (TPM 2.0 Part 1 §30.3).

use super::command::{Handle, SavedSession, Tpm};
use super::error::ManufactureError;
use crate::anchor::ResponseCode;

/// A policy session of the manager's, to be closed in any case.
pub(super) struct WriterSession {
    handle: Handle,
    /// What was in its slot.
    aside: Option<SavedSession>,
}

impl WriterSession {
    /// Starts a session, for which a session of the guest makes room if it must.
    pub(super) fn open(tpm: &mut Tpm<'_>) -> Result<Self, ManufactureError> {
        match tpm.start_policy() {
            Ok(handle) => Ok(Self {
                handle,
                aside: None,
            }),
            // The guest had time to end one of its own.
            Err(ManufactureError::Tpm { code, .. }) if code == ResponseCode::SESSION_MEMORY => {
                Self::open_in_the_place_of_another(tpm)
            }
            Err(error) => Err(error),
        }
    }

    fn open_in_the_place_of_another(tpm: &mut Tpm<'_>) -> Result<Self, ManufactureError> {
        let aside = match tpm.loaded_session()? {
            Some(session) => Some(tpm.save_session(session)?),
            // It ended just now.
            None => None,
        };
        match tpm.start_policy() {
            Ok(handle) => Ok(Self { handle, aside }),
            Err(error) => {
                put_back(tpm, aside.as_ref())?;
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
        put_back(tpm, self.aside.as_ref())?;
        flushed
    }
}

fn put_back(tpm: &mut Tpm<'_>, aside: Option<&SavedSession>) -> Result<(), ManufactureError> {
    aside.map_or(Ok(()), |session| tpm.load_session(session))
}
