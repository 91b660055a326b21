//! Looks at a host from its TPM to its unit files, and says what to do about what is wrong.
//!
//! It asks the manager if there is one, and looks into files and other programs' answers for the
//! rest: so it is of use where the manager does not start, and to users who may see little. It changes
//! nothing. What could not be seen is told apart from what is well.
//!
//! A check is a function from what was seen to [`Finding`]s; [`System`] is how it sees the host, so that
//! a test has a host of its own in a folder.

mod certificates;
mod finding;
mod installation;
mod manager;
mod settings;
mod state;
mod system;
mod system_settings;
mod tpm;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use finding::{Finding, Report, Status};
pub use manager::{ManagerSaid, NotSaid};
pub use settings::Programs;
pub use system::System;
pub use system_settings::listener;

/// What is looked at.
#[derive(Debug)]
pub struct Examination<'a> {
    /// The host.
    pub system: &'a System,
    /// The manager's program and its configuration.
    pub programs: &'a Programs,
    /// What the manager said.
    pub manager: &'a ManagerSaid,
    /// Revocation lists that are handed to services or devices from here.
    pub revocation_lists: &'a [PathBuf],
    /// Of the program that looks.
    pub version: &'a str,
}

impl Examination<'_> {
    /// Carries all checks out.
    pub fn report(&self) -> Report {
        let mut findings = Vec::new();
        let settings = settings::check(self, &mut findings);
        installation::check(self, &mut findings);
        tpm::check(self, &settings, &mut findings);
        manager::check(self, &mut findings);
        certificates::check(self, &mut findings);
        state::check(self, &settings, &mut findings);
        system_settings::check(self, &mut findings);
        Report { findings }
    }
}
