//! Where the vRoTs of this host have their sockets and their locks.

use std::path::PathBuf;

use cert_chain::VrotId;

use crate::backend::{self, BackendError, RuntimeFolder};
use crate::config::Config;

/// The folders of all backends.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    runtime_dir: PathBuf,
    locks: PathBuf,
}

impl Folders {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            runtime_dir: config.runtime_dir.clone(),
            locks: config.locks(),
        }
    }

    /// Where the backend of a vRoT listens.
    pub(super) fn of(&self, vrot: VrotId) -> RuntimeFolder {
        RuntimeFolder::of(&self.runtime_dir, &self.locks, vrot)
    }

    /// Where a copy of a vRoT listens that runs beside it for a moment.
    pub(super) fn of_copy(&self, vrot: VrotId) -> RuntimeFolder {
        RuntimeFolder::of_copy(&self.runtime_dir, vrot)
    }

    /// Those in which backends were started that have not been ended.
    pub(super) fn in_use(&self) -> Result<Vec<RuntimeFolder>, BackendError> {
        backend::running(&self.runtime_dir, &self.locks)
    }
}
