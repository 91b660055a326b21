//! A fault in this program, a panic: the manager that it happened in ends, and the next one tells.

use std::fs;
use std::path::Path;

use bounded_file::read_bounded_text;
use serde::{Deserialize, Serialize};

use api_types::Timestamp;

/// Where and when a manager panicked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When, by the host's clock.
    pub time: Timestamp,
    /// Where in the sources.
    pub place: String,
}

/// In the runtime folder: after a restart of the host nobody misses it.
const FILE: &str = "fault.json";
const LONGEST: usize = 4096;

impl Fault {
    /// Leaves a note for the next manager. If that fails, the log has it.
    pub fn note(runtime_dir: &Path, place: &str) {
        let fault = Self {
            time: Timestamp::now(),
            place: place.chars().take(200).collect(),
        };
        if let Ok(note) = serde_json::to_vec(&fault) {
            let _ = fs::write(runtime_dir.join(FILE), note);
        }
    }

    /// The note that the last manager left, if it left one.
    pub fn take(runtime_dir: &Path) -> Option<Self> {
        let path = runtime_dir.join(FILE);
        let note = read_bounded_text(&path, LONGEST).ok()?;
        let _ = fs::remove_file(&path);
        serde_json::from_str(&note).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_once_and_one_that_is_none_is_ignored() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        assert_eq!(Fault::take(folder.path()), None);
        Fault::note(folder.path(), &"src/somewhere.rs:1".repeat(1000));
        let fault = Fault::take(folder.path());
        assert!(fault.is_some_and(|fault| fault.place.starts_with("src/somewhere.rs:1")));
        assert_eq!(Fault::take(folder.path()), None);
        fs::write(folder.path().join(FILE), "nothing of ours")?;
        assert_eq!(Fault::take(folder.path()), None);
        Ok(())
    }
}
