//! The log, written and read.

mod chain;
mod history;
mod parts;
mod vouched;

use std::path::{Path, PathBuf};

use cert_chain::VrotId;

use super::{AuditError, AuditLog, Event, Layout};

pub(super) fn open(path: &Path) -> Result<AuditLog, AuditError> {
    AuditLog::open(path, Layout::default())
}

pub(super) fn log_of(count: usize) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("audit.jsonl");
    let log = open(&path)?;
    for _ in 0..count {
        log.append(
            None,
            &[Event::VrotStarted {
                vrot: VrotId::random(),
            }],
        )?;
    }
    Ok((folder, path))
}
