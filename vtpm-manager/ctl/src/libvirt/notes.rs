//! What was made for domains: a file for each, so that it can be deleted when its domain is gone, and
//! nothing else ever is.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bounded_file::read_bounded;
use cert_chain::{VmId, VrotId};
use serde::{Deserialize, Serialize};

use super::error::LibvirtError;

/// The version of the file's format.
const VERSION: u32 = 1;
const MAX_FILE: usize = 4096;
const MODE: u32 = 0o600;

/// What was made for one domain.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    version: u32,
    /// The domain.
    pub(super) vm: VmId,
    /// Its vRoT.
    pub(super) vrot: VrotId,
    /// Since when libvirt does not know the domain, as far as that was noticed: seconds since 1970.
    pub(super) unknown_since: Option<u64>,
}

impl Note {
    /// A vRoT that was just made.
    pub(super) fn new(vm: VmId, vrot: VrotId) -> Self {
        Self {
            version: VERSION,
            vm,
            vrot,
            unknown_since: None,
        }
    }

    /// Writes it down, durably.
    pub(super) fn keep(&self, notes: &Path) -> Result<(), LibvirtError> {
        match DirBuilder::new().mode(0o700).create(notes) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(LibvirtError::file(notes, "made", error));
            }
            Ok(()) | Err(_) => {}
        }
        let path = path(notes, self.vm);
        let json = serde_json::to_vec(self).map_err(|source| LibvirtError::Note {
            path: path.clone(),
            source: source.into(),
        })?;
        durable_file::replace(&path, &json, MODE)
            .map_err(|source| LibvirtError::file(&path, "written", source))
    }

    /// Removes it.
    pub(super) fn remove(notes: &Path, vm: VmId) -> Result<(), LibvirtError> {
        let path = path(notes, vm);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(LibvirtError::file(&path, "removed", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// All of them.
    pub(super) fn all(notes: &Path) -> Result<Vec<Self>, LibvirtError> {
        let failed = |source| LibvirtError::file(notes, "read", source);
        let entries = match fs::read_dir(notes) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            // A file that is being written has another ending.
            if path.extension().is_some_and(|ending| ending == "json") {
                all.push(Self::read(&path)?);
            }
        }
        all.sort_by_key(|note| note.vm);
        Ok(all)
    }

    fn read(path: &Path) -> Result<Self, LibvirtError> {
        let json = read_bounded(path, MAX_FILE)
            .map_err(|source| LibvirtError::file(path, "read", source))?;
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| LibvirtError::Note {
            path: path.to_owned(),
            source,
        };
        let note: Self = serde_json::from_slice(&json).map_err(|error| refused(error.into()))?;
        if note.version != VERSION {
            let version = format!("it has version {}, not {VERSION}", note.version);
            return Err(refused(version.into()));
        }
        Ok(note)
    }
}

fn path(notes: &Path, vm: VmId) -> PathBuf {
    notes.join(format!("{vm}.json"))
}

#[cfg(test)]
mod tests {
    use super::super::domain::tests::VM;
    use super::*;

    #[test]
    fn a_note_of_version_1_is_read_and_written_as_it_was() -> anyhow::Result<()> {
        let golden = include_str!("note_v1.json").trim_end();
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(format!("{VM}.json"));
        fs::write(&path, golden)?;
        let notes = Note::all(folder.path())?;
        let [note] = notes.as_slice() else {
            anyhow::bail!("{notes:?}");
        };
        assert_eq!(note.unknown_since, Some(1_795_884_051));
        note.keep(folder.path())?;
        assert_eq!(fs::read_to_string(&path)?, golden);
        Note::remove(folder.path(), VM.parse()?)?;
        assert_eq!(Note::all(folder.path())?, []);
        Ok(())
    }

    #[test]
    fn a_note_that_is_not_understood_stops_all() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let golden = include_str!("note_v1.json");
        for wrong in [
            golden.replace("\"version\":1", "\"version\":2"),
            "{}".to_owned(),
        ] {
            fs::write(folder.path().join(format!("{VM}.json")), &wrong)?;
            assert!(Note::all(folder.path()).is_err(), "{wrong}");
        }
        Ok(())
    }
}
