//! The log: to the manager, or to standard error. Neither is ever waited for.

use program_output::log;

use super::{Keeper, Server};

impl<E> Server<E> {
    /// Hands on what there is to say, as far as it is taken.
    pub(super) fn pass_log_on(&mut self) {
        match (&mut self.keeper, &mut self.stderr) {
            (Keeper::Manager(link), _) => link.pass_log_on(),
            (Keeper::Folder(_), Some(stderr)) => log::pass_on(&mut |line| stderr.write(line)),
            (Keeper::Folder(_), None) => {}
        }
    }

    /// Whether something waits to be said, and there is somebody to say it to.
    pub(super) fn has_log_waiting(&self) -> bool {
        let has_reader = match &self.keeper {
            Keeper::Manager(link) => link.takes_log(),
            Keeper::Folder(_) => self.stderr.is_some(),
        };
        has_reader && log::is_waiting()
    }
}

/// The last words, also those of a panic.
impl<E> Drop for Server<E> {
    fn drop(&mut self) {
        self.pass_log_on();
    }
}
