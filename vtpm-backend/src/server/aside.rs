//! Volatile state that is put aside: with a VMM that saved its VM, on the disk, or brought and not
//! used yet.
//!
//! It has one use: the TPM is switched on with it, by who brought it or because it was stored for
//! whoever comes next. Once the TPM does anything else, it is gone.

use zeroize::Zeroizing;

use super::Server;
use crate::engine::{Engine, StateKind};

/// Whether a volatile state was brought that the TPM was not switched on with yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// None was brought; one that was kept here may be waiting.
    Nothing,
    /// By the VMM that is attached.
    ByVmm,
    /// By one that left. Tools use a connection for each request.
    ByOneThatLeft,
}

impl<E: Engine> Server<E> {
    /// The TPM does something now: a volatile state that was put aside, with a VMM or in the
    /// on the disk, would bring an old one back. What is due is saved with what the TPM changes.
    pub(super) fn go_on(&mut self) {
        if !self.engine.is_on() {
            return;
        }
        self.engine.go_on();
        self.stored = None;
        self.keeper.forget_volatile();
    }

    /// Whether the volatile state was put aside, and the TPM did nothing since: whoever has it go
    /// on, but for its VMM, would take it away from that.
    pub(super) fn is_put_aside(&mut self) -> bool {
        if self.keeper.is_carried() {
            return true;
        }
        !self.engine.is_on() && matches!(self.engine.state(StateKind::Volatile), Ok(Some(_)))
    }

    /// Keeps what a VMM brought; false if it could not be written.
    pub(super) fn take_over(&mut self, kind: Option<StateKind>) -> bool {
        match kind {
            Some(StateKind::Volatile) => self.brought = Brought::ByVmm,
            // One that was here before belongs to another permanent state.
            Some(StateKind::Permanent) if self.brought == Brought::Nothing => {
                self.engine.delete_volatile();
            }
            _ => {}
        }
        self.stored = None;
        let Some(store) = self.keeper.store_mut() else {
            return true;
        };
        for kind in [StateKind::Permanent, StateKind::Volatile] {
            let state = self.engine.state(kind).ok().flatten().map(Zeroizing::new);
            if state.is_some() || kind == StateKind::Volatile {
                store.keep(kind, state);
            }
        }
        self.engine.changed_permanent_state();
        !store.has_unsaved()
    }

    /// Keeps the volatile state of a TPM that is on; false if it could not be written.
    pub(super) fn store_volatile(&mut self) -> bool {
        let Some(store) = self.keeper.store_mut() else {
            tracing::warn!(
                "the VMM asks for the volatile state to be kept: with a manager, `vtpmctl suspend` \
                 does that"
            );
            return false;
        };
        let state = match self.engine.state(StateKind::Volatile) {
            Ok(Some(state)) => Zeroizing::new(state),
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(%error, "there is no volatile state to keep");
                return false;
            }
        };
        store.keep(StateKind::Volatile, Some(state.clone()));
        self.stored = Some(state);
        self.engine.give_away();
        !store.has_unsaved()
    }

    /// A volatile state that was brought and not used is not for whoever comes next. One that was
    /// stored is, once the VMM is done.
    pub(super) fn switched_off(&mut self, for_good: bool) {
        let may_be_used = self.brought == Brought::ByVmm && !for_good;
        if self.brought != Brought::Nothing && !may_be_used {
            self.forget_brought();
        }
        if for_good
            && let Some(state) = self.stored.take()
            && let Err(error) = self.engine.set_state(StateKind::Volatile, &state)
        {
            tracing::error!(%error, "the volatile state that was stored is not taken up");
        }
    }

    /// The VMM is gone.
    pub(super) fn detached(&mut self) {
        self.engine.forget_measurement();
        if self.keeper.manager().is_none() {
            if self.brought == Brought::ByVmm {
                self.brought = Brought::ByOneThatLeft;
            }
            return;
        }
        // Its VM is saved: what the next VMM tries before it brings the state is for no TPM.
        if self.keeper.is_carried() {
            self.engine.power_off();
        }
        if self.brought != Brought::Nothing {
            self.forget_brought();
        }
    }

    fn forget_brought(&mut self) {
        self.engine.delete_volatile();
        self.forget_used_volatile();
    }

    /// The TPM was switched on, and has its volatile state.
    pub(super) fn forget_used_volatile(&mut self) {
        self.brought = Brought::Nothing;
        self.stored = None;
        if let Some(store) = self.keeper.store_mut() {
            store.keep(StateKind::Volatile, None);
        } else if self.keeper.is_carried() {
            // As long as the TPM does nothing, it can be brought again.
            self.engine.give_away();
        }
    }
}
