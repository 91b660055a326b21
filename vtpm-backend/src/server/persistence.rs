//! What of the state is kept, where it goes, and when.

use super::Server;
use crate::control::{Reply, Request};
use crate::engine::{Engine, StateKind};
use crate::stand_alone::LocalState;

/// What a request on the control channel means for the state that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Nothing.
    None,
    /// A VMM brought the state of a VM that moved here.
    StateCame(Option<StateKind>),
    /// The volatile state is to be there for the next VMM, or after this process.
    VolatileStored,
    /// The volatile state was used up, or is to be forgotten.
    SwitchedOn {
        /// Whether the TPM did not need it to begin with.
        deleted: bool,
    },
    /// The TPM is off.
    SwitchedOff {
        /// Whether the VMM is done with it, and not about to switch it on again.
        for_good: bool,
    },
    /// The TPM does something: its volatile state is another one afterwards.
    GoesOn,
}

impl Consequence {
    /// Of a request, if it succeeds.
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::SetStateBlob { kind, .. } => Self::StateCame(*kind),
            Request::StoreVolatile => Self::VolatileStored,
            Request::Init { delete_volatile } => Self::SwitchedOn {
                deleted: *delete_volatile,
            },
            Request::Stop => Self::SwitchedOff { for_good: false },
            Request::Shutdown => Self::SwitchedOff { for_good: true },
            // By the last one a VMM says that the VM goes on here, after its state was taken.
            Request::HashStart
            | Request::HashData(_)
            | Request::HashEnd
            | Request::ResetEstablished(_)
            | Request::LockStorage => Self::GoesOn,
            Request::GetCapability
            | Request::GetEstablished
            | Request::SetLocality(_)
            | Request::Cancel
            | Request::GetStateBlob { .. }
            | Request::GetConfig
            | Request::SetDataFd
            | Request::SetBufferSize { .. }
            | Request::GetInfo { .. }
            | Request::Unknown(_) => Self::None,
        }
    }
}

impl<E: Engine> Server<E> {
    /// Draws the consequence of a request that was carried out. A VMM that brought a state, or wants one
    /// kept, is told if it could not be written.
    pub(super) fn conclude(&mut self, consequence: Consequence, reply: Reply) -> Reply {
        const FAIL: [u8; 4] = [0, 0, 0, 9];
        let succeeded = matches!(
            &reply,
            Reply::Answer(answer) | Reply::AnswerAndEnd(answer) if answer.starts_with(&[0; 4])
        );
        let is_kept = match consequence {
            Consequence::StateCame(kind) if succeeded => self.take_over(kind),
            Consequence::VolatileStored if succeeded => self.store_volatile(),
            Consequence::SwitchedOn { deleted } if succeeded || deleted => {
                self.forget_used_volatile();
                true
            }
            Consequence::SwitchedOff { for_good } => {
                self.switched_off(for_good);
                true
            }
            Consequence::None
            | Consequence::StateCame(_)
            | Consequence::VolatileStored
            | Consequence::SwitchedOn { .. }
            | Consequence::GoesOn => true,
        };
        if is_kept {
            reply
        } else {
            Reply::Answer(FAIL.to_vec())
        }
    }
}

/// The state of a place, loaded into a TPM that is off.
pub fn load_state<E: Engine>(engine: &mut E, store: &LocalState) -> anyhow::Result<()> {
    use anyhow::Context;
    for kind in [StateKind::Permanent, StateKind::Volatile] {
        if let Some(state) = store.load(kind)? {
            engine.set_state(kind, &state).with_context(|| {
                let place = store.location();
                format!("{place} holds something that is no TPM state; nothing was changed")
            })?;
        }
    }
    engine.changed_permanent_state();
    Ok(())
}
