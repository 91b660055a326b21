//! What the program says of its work: to a log, or to standard output and error.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use program_output::console::print;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::outputs::log_file;

pub(super) struct Report {
    log: Option<(PathBuf, RefCell<File>)>,
}

impl Report {
    /// Says things in this file, if one is given.
    pub(super) fn start(path: Option<&Path>) -> Result<Self> {
        let log = match path {
            None => None,
            Some(path) => {
                let file = File::from(log_file(path, false)?);
                Some((path.to_owned(), RefCell::new(file)))
            }
        };
        Ok(Self { log })
    }

    /// The file, for the program that makes certificates.
    pub(super) fn path(&self) -> Option<&Path> {
        self.log.as_ref().map(|(path, _)| path.as_path())
    }

    /// Says something. A log that cannot be written stops nothing.
    pub(super) fn say(&self, text: &str) {
        match &self.log {
            Some((_, file)) => {
                let _ = writeln!(file.borrow_mut(), "{text}");
            }
            None => {
                let _ = print(&format!("{text}\n"));
            }
        }
    }

    /// Notes in the log why it failed.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        if self.log.is_some() {
            self.say(&format!("{error:#}"));
            self.say("An error occurred. Authoring the TPM state failed.");
        }
    }
}

/// The time of day, in UTC.
pub(super) fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc2822)
        .unwrap_or_default()
}
