//! The log: to the manager, or to standard error. Neither is ever waited for.

use program_output::log;

use super::Server;
use crate::managed::ManagerLink;

impl<E> Server<E> {
    /// Hands on what there is to say, as far as it is taken.
    pub(super) fn pass_log_on(&mut self) {
        self.keeper.pass_log_on(self.stderr.as_mut());
    }

    /// Whether lines wait, and there is a destination for them.
    pub(super) fn has_log_waiting(&self) -> bool {
        let manager = self.keeper.manager();
        let has_reader = manager.map_or(self.stderr.is_some(), ManagerLink::takes_log);
        has_reader && log::is_waiting()
    }
}

/// The last words, also those of a panic.
impl<E> Drop for Server<E> {
    fn drop(&mut self) {
        self.pass_log_on();
    }
}
