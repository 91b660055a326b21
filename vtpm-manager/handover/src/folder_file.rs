//! The file in a VM's folder that says which vRoT is the folder's: no key, no state, but a random
//! token, of which the manager knows the digest. Who can read it can start the vRoT.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Its name.
pub const NAME: &str = "vrot.json";
const NEW_NAME: &str = ".vrot.json.new";
/// The longest content.
pub const MAX_FILE: usize = 4096;
const TYPE: &str = "vrot-folder";
const VERSION: u32 = 1;

/// What it says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderFile {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    /// On which host the vRoT is, for people: the manager does not go by it.
    pub host: String,
    /// The vRoT.
    pub vrot: Uuid,
    /// Its VM.
    pub vm: Uuid,
    /// 32 random bytes in hexadecimal.
    pub token: String,
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderFileError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is no such file.
    #[error("it is not a file that names a vRoT")]
    Json(#[from] serde_json::Error),
    /// Of another type or version.
    #[error(
        "it is of type `{kind}`, version {version}; only `{TYPE}`, version {VERSION}, is known"
    )]
    Version {
        /// Type.
        kind: String,
        /// Version.
        version: u32,
    },
    /// Too long.
    #[error("it has more than {MAX_FILE} bytes")]
    TooLong,
}

impl FolderFile {
    /// A file for this vRoT.
    pub fn new(host: String, vrot: Uuid, vm: Uuid, token: String) -> Self {
        Self {
            kind: TYPE.to_owned(),
            version: VERSION,
            host,
            vrot,
            vm,
            token,
        }
    }

    /// Its content.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Texts and numbers always have a JSON form.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads an open file, from its beginning.
    pub fn read(file: &File) -> Result<Self, FolderFileError> {
        let mut bytes = vec![0; MAX_FILE + 1];
        let mut length = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, length as u64)? {
                0 => break,
                more => length += more,
            }
        }
        if length > MAX_FILE {
            return Err(FolderFileError::TooLong);
        }
        bytes.truncate(length);
        let read: Self = serde_json::from_slice(&bytes)?;
        if read.kind != TYPE || read.version != VERSION {
            return Err(FolderFileError::Version {
                kind: read.kind,
                version: read.version,
            });
        }
        Ok(read)
    }
}

/// The token starts the vRoT: it is not for logs.
impl std::fmt::Debug for FolderFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FolderFile")
            .field("host", &self.host)
            .field("vrot", &self.vrot)
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

/// Opens a folder itself, wherever its path leads.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Opens the file in a folder; none, if there is none. A symbolic link in its place is an error.
pub fn open_in(folder: &OwnedFd) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match openat(folder, NAME, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the folder has a file of this name.
pub fn has(folder: &OwnedFd, name: &str) -> bool {
    fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

/// Puts the file into a folder, durably, in place of an older one; the file, open.
pub fn write_in(folder: &OwnedFd, content: &[u8]) -> io::Result<File> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    // One that was begun is another's no longer: its maker holds the folder's lock no more.
    match nix::unistd::unlinkat(folder, NEW_NAME, nix::unistd::UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut file = File::from(openat(folder, NEW_NAME, flags | OFlag::O_EXCL, mode)?);
    file.write_all(content)?;
    file.sync_all()?;
    renameat(folder, NEW_NAME, folder, NAME)?;
    File::from(folder.try_clone()?).sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn some() -> FolderFile {
        FolderFile::new(
            "host-1.example".to_owned(),
            Uuid::from_bytes([1; 16]),
            Uuid::from_bytes([2; 16]),
            "ab".repeat(32),
        )
    }

    /// Version 1 byte for byte: folders in the field hold it.
    #[test]
    fn version_one_stays_as_it_is() {
        let golden = "{\n  \"type\": \"vrot-folder\",\n  \"version\": 1,\n  \"host\": \"host-1.example\",\n  \
                      \"vrot\": \"01010101-0101-0101-0101-010101010101\",\n  \
                      \"vm\": \"02020202-0202-0202-0202-020202020202\",\n  \"token\": \"";
        let golden = format!("{golden}{}\"\n}}\n", "ab".repeat(32));
        assert_eq!(String::from_utf8_lossy(&some().to_bytes()), golden);
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_is_its_owner_s_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let open = open_folder(folder.path())?;
        assert!(open_in(&open)?.is_none());
        let written = write_in(&open, &some().to_bytes())?;
        assert_eq!(written.metadata()?.permissions().mode() & 0o777, 0o600);
        let found = open_in(&open)?.unwrap_or_else(|| unreachable!("it was written"));
        assert_eq!(FolderFile::read(&found)?, some());
        assert!(!format!("{:?}", some()).contains("abab"));
        Ok(())
    }

    #[test]
    fn what_is_no_such_file_is_refused() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let open = open_folder(folder.path())?;
        let longest = "x".repeat(MAX_FILE + 1);
        let newer = String::from_utf8(some().to_bytes())?.replace(": 1,", ": 2,");
        for content in ["", "{}", "nonsense", &longest, &newer] {
            let file = write_in(&open, content.as_bytes())?;
            assert!(FolderFile::read(&file).is_err(), "{content}");
        }
        std::fs::remove_file(folder.path().join(NAME))?;
        symlink("/etc/passwd", folder.path().join(NAME))?;
        assert!(open_in(&open).is_err());
        Ok(())
    }
}
