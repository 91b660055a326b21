//! Whether the store may be used: one state, which one task at a time changes and everybody can
//! read and wait for.
//!
//! ```text
//! opening ──────► blank ─────────┐ host init
//!    │  ▲           │            ▼
//!    │  └───────────┴──── opening (vouched) ──► open
//!    ├──► unreachable ──────────▲ ▲   │
//!    └──► refused ────────────────┘   └──► unreachable (vouched)
//!           recovery
//! ```

use api_types::WithCauses;
use guarded_state::ledger::{Boot, PowerLoss, Refusal};
use tokio::sync::{Mutex, MutexGuard, TryLockError, watch};

use crate::manager::error::ManagerError;

/// Whether the store may be used.
#[derive(Clone, Debug)]
pub enum StoreState {
    /// It is held against the physical TPM for the first time or, once that vouches for it, taken
    /// over: records are read and backends adopted.
    Opening {
        /// What the ledger says, once the physical TPM vouches for the store.
        vouched: Option<Vouched>,
    },
    /// Nothing was ever stored here.
    Blank,
    /// The root secret, and with it the rollback anchor, is out of reach, or what the store holds
    /// could not be taken over. It is tried again.
    Unreachable {
        /// Why.
        reason: String,
        /// What the ledger says, if the physical TPM vouches for the store.
        vouched: Option<Vouched>,
    },
    /// It is not the one that the physical TPM vouches for.
    Refused {
        /// What was found.
        refusal: Box<Refusal>,
    },
    /// The physical TPM vouches for it, and what is in it was taken over.
    Open(Vouched),
}

/// What the ledger said when the physical TPM vouched for the store. It is asked once: from then on
/// the open ledger knows better than the registers.
#[derive(Clone, Copy, Debug)]
pub struct Vouched {
    /// How the host came up.
    pub boot: Boot,
    /// The last loss of power that may have cut off state.
    pub power_loss: Option<PowerLoss>,
}

/// Owns the store's state. Changing it takes the [`Turn`].
#[derive(Debug)]
pub(in crate::manager) struct StoreGate {
    state: watch::Sender<StoreState>,
    turn: Mutex<Initialisation>,
}

/// Whether `host init` was called since the manager started: only then may a store and a root secret
/// be made where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::manager) enum Initialisation {
    #[default]
    NotOrdered,
    Ordered,
}

/// The right to open, set up or recover the store, or to look at backends while it is not open.
#[derive(Debug)]
pub(in crate::manager) struct Turn<'a> {
    state: &'a watch::Sender<StoreState>,
    initialisation: MutexGuard<'a, Initialisation>,
}

impl StoreState {
    /// What the ledger says, if the physical TPM vouches for the store.
    pub fn vouched(&self) -> Option<Vouched> {
        match self {
            Self::Opening { vouched } | Self::Unreachable { vouched, .. } => *vouched,
            Self::Open(vouched) => Some(*vouched),
            Self::Blank | Self::Refused { .. } => None,
        }
    }

    /// Whether vRoTs can be used.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether it is still being found out what the store is.
    pub fn is_opening(&self) -> bool {
        matches!(self, Self::Opening { .. })
    }
}

impl StoreGate {
    /// Of a store that was not looked at yet.
    pub(in crate::manager) fn new() -> Self {
        Self {
            state: watch::Sender::new(StoreState::Opening { vouched: None }),
            turn: Mutex::default(),
        }
    }

    pub(in crate::manager) fn state(&self) -> StoreState {
        self.state.borrow().clone()
    }

    pub(in crate::manager) fn watch(&self) -> watch::Receiver<StoreState> {
        self.state.subscribe()
    }

    pub(in crate::manager) fn is_open(&self) -> bool {
        self.state.borrow().is_open()
    }

    pub(in crate::manager) fn vouched(&self) -> Option<Vouched> {
        self.state.borrow().vouched()
    }

    /// Waits for the turn.
    pub(in crate::manager) async fn turn(&self) -> Turn<'_> {
        Turn {
            state: &self.state,
            initialisation: self.turn.lock().await,
        }
    }

    /// The turn, if it is free.
    pub(in crate::manager) fn try_turn(&self) -> Result<Turn<'_>, TryLockError> {
        Ok(Turn {
            state: &self.state,
            initialisation: self.turn.try_lock()?,
        })
    }
}

impl Turn<'_> {
    pub(in crate::manager) fn state(&self) -> StoreState {
        self.state.borrow().clone()
    }

    pub(in crate::manager) fn initialisation(&self) -> Initialisation {
        *self.initialisation
    }

    /// `host init` was called.
    pub(in crate::manager) fn order_initialisation(&mut self) {
        *self.initialisation = Initialisation::Ordered;
    }

    pub(in crate::manager) fn set(&self, state: StoreState) {
        self.state.send_replace(state);
    }

    /// It could not be opened or taken over.
    pub(in crate::manager) fn failed(&self, error: &ManagerError) {
        let reason = WithCauses(error).to_string();
        self.state.send_modify(|state| {
            let vouched = state.vouched();
            *state = StoreState::Unreachable { reason, vouched };
        });
    }
}
