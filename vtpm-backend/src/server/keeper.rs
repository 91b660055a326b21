//! Where the state of a vRoT goes, and who can be asked for evidence: a place on the disk, or the manager.

use std::os::fd::{AsFd, BorrowedFd};

use backend_link::message::FromBackend;
use program_output::log;
use zeroize::Zeroizing;

use crate::engine::{Engine, StateKind};
use crate::managed::ManagerLink;
use crate::stand_alone::LocalState;

/// Where state goes, and who can be asked for evidence.
pub enum Keeper {
    /// A place of its own; there is no host to ask.
    Store(LocalState),
    /// The manager.
    Manager(Box<ManagerLink>),
}

impl Keeper {
    /// The manager's link, unless the vRoT is stand-alone.
    pub(super) fn manager(&self) -> Option<&ManagerLink> {
        match self {
            Self::Store(_) => None,
            Self::Manager(link) => Some(link),
        }
    }

    /// The same, to be used.
    pub(super) fn manager_mut(&mut self) -> Option<&mut ManagerLink> {
        match self {
            Self::Store(_) => None,
            Self::Manager(link) => Some(link),
        }
    }

    /// The place of a stand-alone vRoT.
    pub(super) fn store_mut(&mut self) -> Option<&mut LocalState> {
        match self {
            Self::Store(store) => Some(store),
            Self::Manager(_) => None,
        }
    }

    /// Sends the manager a message, if there is a manager and it is connected.
    pub(super) fn send(&mut self, message: &FromBackend) {
        if let Some(link) = self.manager_mut() {
            link.send(message);
        }
    }

    /// Whether the TPM has its state. With a manager, that has to hand it over first.
    pub(super) fn has_state(&self) -> bool {
        self.manager().is_none_or(ManagerLink::is_open)
    }

    /// Saves what the TPM changed of its permanent state, and what could not be saved before.
    pub(super) fn save(&mut self, engine: &mut impl Engine) {
        let changed = engine.changed_permanent_state().map(Zeroizing::new);
        match (self, changed) {
            (Self::Store(store), Some(state)) => store.keep(StateKind::Permanent, Some(state)),
            (Self::Store(store), None) => store.retry(),
            (Self::Manager(link), Some(state)) => link.save(&state),
            (Self::Manager(link), None) if link.owes_state() => {
                match engine.state(StateKind::Permanent) {
                    Ok(state) => link.save(&Zeroizing::new(state.unwrap_or_default())),
                    Err(error) => tracing::error!(%error, "a state stays unsaved"),
                }
            }
            (Self::Manager(_), None) => {}
        }
    }

    /// Tries to save what could not be saved before. A manager is sent its state again when it
    /// dials in.
    pub(super) fn retry(&mut self) {
        if let Some(store) = self.store_mut() {
            store.retry();
        }
    }

    /// Whether [`retry`](Self::retry) is to be called again after a while.
    pub(super) fn wants_retry(&self) -> bool {
        match self {
            Self::Store(store) => store.has_unsaved(),
            Self::Manager(_) => false,
        }
    }

    /// Forgets the volatile state that was put aside: the TPM goes on. [`save`](Self::save) has to
    /// follow, before anybody sees what it does.
    pub(super) fn forget_volatile(&mut self) {
        match self {
            Self::Store(store) => store.note(StateKind::Volatile, None),
            Self::Manager(link) => link.go_on(),
        }
    }

    /// Whether a VMM carries the volatile state, and the TPM did nothing since.
    pub(super) fn is_carried(&self) -> bool {
        self.manager().is_some_and(ManagerLink::is_carried)
    }

    /// Asks the host for evidence; false if there is no manager to ask.
    pub(super) fn request_evidence(&mut self, ticket: u64, digest: [u8; 32]) -> bool {
        let Some(link) = self.manager_mut().filter(|link| link.is_connected()) else {
            return false;
        };
        let digest = digest.into();
        link.send(&FromBackend::HostEvidenceRequested { ticket, digest });
        true
    }

    /// Sockets that become readable when the manager has something to say: where it dials, and
    /// its connection.
    pub(super) fn sockets(&self) -> [Option<BorrowedFd<'_>>; 2] {
        let link = self.manager();
        [
            link.map(|link| link.listener().as_fd()),
            link.and_then(ManagerLink::connection).map(AsFd::as_fd),
        ]
    }

    /// Hands the log on, as far as it is taken: to the manager, or else to `stderr`.
    pub(super) fn pass_log_on(&mut self, stderr: Option<&mut log::Stderr>) {
        match (self, stderr) {
            (Self::Manager(link), _) => link.pass_log_on(),
            (Self::Store(_), Some(stderr)) => log::pass_on(&mut |line| stderr.write(line)),
            (Self::Store(_), None) => {}
        }
    }
}
