//! What of the state is kept, where it goes, and when.

use zeroize::Zeroizing;

use super::{Keeper, Server};
use crate::control::{Reply, Request};
use crate::engine::{Engine, StateKind};
use crate::stand_alone::StateFolder;

/// What a request on the control channel means for a state folder, besides a permanent state that
/// the TPM itself has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Nothing.
    None,
    /// A VMM brought the state of a VM that moved here.
    StateCame,
    /// The volatile state is to be there after this process.
    VolatileStored,
    /// The volatile state was used up, or is to be forgotten.
    VolatileUsed {
        /// Whether the TPM did not need it to begin with.
        deleted: bool,
    },
}

impl Consequence {
    /// Of a request, if it succeeds.
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::SetStateBlob { .. } => Self::StateCame,
            Request::StoreVolatile => Self::VolatileStored,
            Request::Init { delete_volatile } => Self::VolatileUsed {
                deleted: *delete_volatile,
            },
            Request::GetCapability
            | Request::Shutdown
            | Request::GetEstablished
            | Request::SetLocality(_)
            | Request::HashStart
            | Request::HashData(_)
            | Request::HashEnd
            | Request::Cancel
            | Request::ResetEstablished(_)
            | Request::GetStateBlob { .. }
            | Request::Stop
            | Request::GetConfig
            | Request::SetDataFd
            | Request::SetBufferSize { .. }
            | Request::GetInfo { .. }
            | Request::LockStorage
            | Request::Unknown(_) => Self::None,
        }
    }
}

impl<E: Engine> Server<E> {
    /// Has changed state saved before anybody sees the response, and what could not be saved
    /// before.
    pub(super) fn save_changes(&mut self) {
        let changed = self.engine.changed_permanent_state().map(Zeroizing::new);
        match (&mut self.keeper, changed) {
            (Keeper::Folder(folder), Some(state)) => {
                folder.keep(StateKind::Permanent, Some(state));
            }
            (Keeper::Folder(folder), None) => folder.retry(),
            (Keeper::Manager(link), Some(state)) => link.save(&state),
            (Keeper::Manager(_), None) => {}
        }
    }

    /// Tries to save what could not be saved before.
    pub(super) fn retry_saving(&mut self) {
        if let Keeper::Folder(folder) = &mut self.keeper {
            folder.retry();
        }
    }

    /// Has a folder keep what follows from a request that was carried out. Who brought a state, or
    /// wants one kept, is told if it could not be written.
    pub(super) fn keep_in_folder(&mut self, consequence: Consequence, reply: Reply) -> Reply {
        const FAIL: [u8; 4] = [0, 0, 0, 9];
        let Keeper::Folder(folder) = &mut self.keeper else {
            return reply;
        };
        let succeeded = matches!(&reply, Reply::Answer(answer) if answer.starts_with(&[0; 4]));
        let mut state = |kind| {
            let state = self.engine.state(kind).ok().flatten();
            state.map(Zeroizing::new)
        };
        match consequence {
            Consequence::StateCame if succeeded => {
                for kind in [StateKind::Permanent, StateKind::Volatile] {
                    if let Some(state) = state(kind) {
                        folder.keep(kind, Some(state));
                    }
                }
                self.engine.changed_permanent_state();
            }
            Consequence::VolatileStored if succeeded => {
                if let Some(state) = state(StateKind::Volatile) {
                    folder.keep(StateKind::Volatile, Some(state));
                }
            }
            Consequence::VolatileUsed { deleted } if succeeded || deleted => {
                folder.keep(StateKind::Volatile, None);
                return reply;
            }
            Consequence::None
            | Consequence::StateCame
            | Consequence::VolatileStored
            | Consequence::VolatileUsed { .. } => return reply,
        }
        if folder.has_unsaved() {
            return Reply::Answer(FAIL.to_vec());
        }
        reply
    }

    /// The TPM was switched on by somebody else than a VMM.
    pub(super) fn forget_used_volatile(&mut self) {
        if let Keeper::Folder(folder) = &mut self.keeper {
            folder.keep(StateKind::Volatile, None);
        }
    }
}

/// A folder's state, loaded into a TPM that is off.
pub fn load_state<E: Engine>(engine: &mut E, folder: &StateFolder) -> anyhow::Result<()> {
    use anyhow::Context;
    for kind in [StateKind::Permanent, StateKind::Volatile] {
        if let Some(state) = folder.load(kind)? {
            engine.set_state(kind, &state).context(
                "the state folder holds something that is no TPM state; nothing was changed",
            )?;
        }
    }
    engine.changed_permanent_state();
    Ok(())
}
