//! A folder of sockets for each running vRoT.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cert_chain::{Digest32, VrotId};

use super::BackendError;

/// Where one backend listens. Only the manager's user gets in; the backend was in before it became
/// a user of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFolder {
    vrot: VrotId,
    path: PathBuf,
}

impl RuntimeFolder {
    /// The folder of a vRoT, whether it exists or not.
    pub fn of(runtime_dir: &Path, vrot: VrotId) -> Self {
        Self {
            vrot,
            path: runtime_dir.join(vrot.to_string()),
        }
    }

    /// A folder for a copy of a vRoT that runs beside it for a moment. Should the copy outlive
    /// the manager, then it is one that nobody knows, and the next manager ends it.
    pub fn of_copy(runtime_dir: &Path, vrot: VrotId) -> Self {
        Self {
            vrot,
            path: runtime_dir.join(VrotId::random().to_string()),
        }
    }

    /// Makes the folder. One that is there already may be in use: it is left alone.
    pub fn create(&self) -> Result<(), BackendError> {
        DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| self.error("made", source))
    }

    /// Removes the folder with all sockets in it.
    pub fn remove(&self) -> Result<(), BackendError> {
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error("removed", source))
            }
            _ => Ok(()),
        }
    }

    /// Notes which user its backend is.
    pub(super) fn note_user(&self, uid: u32) -> Result<(), BackendError> {
        fs::write(self.path.join(USER), uid.to_string())
            .map_err(|source| self.error("written to", source))
    }

    /// Which user its backend is, if it is another one than the manager's.
    pub(super) fn user(&self) -> Option<u32> {
        fs::read_to_string(self.path.join(USER)).ok()?.parse().ok()
    }

    /// A number that is the same for the same folder, and hardly for another.
    pub(super) fn number(&self) -> u32 {
        let name = self.path.file_name().unwrap_or_default();
        let digest = Digest32::of(name.as_bytes());
        match digest.as_bytes().first_chunk() {
            Some(bytes) => u32::from_be_bytes(*bytes),
            None => 0,
        }
    }

    /// The vRoT.
    pub fn vrot(&self) -> VrotId {
        self.vrot
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the VMM attaches (TPM emulator protocol).
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Where the manager dials.
    pub fn manager(&self) -> PathBuf {
        self.path.join("manager.sock")
    }

    fn error(&self, action: &'static str, source: io::Error) -> BackendError {
        BackendError::Folder {
            path: self.path.clone(),
            action,
            source,
        }
    }
}

/// The file that says which user a backend is.
const USER: &str = "uid";

/// The folders that backends were given, of live and of dead ones.
pub fn running(runtime_dir: &Path) -> Result<Vec<RuntimeFolder>, BackendError> {
    let failed = |source| BackendError::Folder {
        path: runtime_dir.to_owned(),
        action: "read",
        source,
    };
    let mut folders = Vec::new();
    for entry in fs::read_dir(runtime_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let vrot = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(vrot) = vrot
            && entry.file_type().map_err(failed)?.is_dir()
        {
            folders.push(RuntimeFolder::of(runtime_dir, vrot));
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_again_and_nothing_else() -> anyhow::Result<()> {
        let runtime_dir = tempfile::tempdir()?;
        let folder = RuntimeFolder::of(runtime_dir.path(), VrotId::random());
        folder.create()?;
        fs::create_dir(runtime_dir.path().join("something else"))?;
        fs::write(runtime_dir.path().join(VrotId::random().to_string()), "")?;
        assert_eq!(running(runtime_dir.path())?, std::slice::from_ref(&folder));
        assert!(folder.create().is_err(), "a folder in use is left alone");
        folder.remove()?;
        folder.remove()?;
        assert_eq!(running(runtime_dir.path())?, []);
        Ok(())
    }
}
