//! What a folder, or the file in it, is that came as a descriptor: by the kernel's word, not its
//! sender's. Whoever can open it may show it; nothing is looked up by a path.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use cert_chain::{Digest32, VrotId};
use vrot_handover::folder_file::{FolderFile, FolderFileError, NAME};
use vrot_handover::message::Lock;

use crate::manager::Presented;
use crate::vrot::FileIdentity;

/// Why a descriptor was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum PresentedError {
    /// None came.
    #[error("a descriptor of the VM's folder, or of `{NAME}` in it, is missing")]
    Missing,
    /// The kernel does not say what it is.
    #[error("the VM's folder cannot be looked at")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("`{path}` is {what}: {remedy}")]
    Unfit {
        /// Where.
        path: String,
        /// What is wrong.
        what: &'static str,
        /// What helps.
        remedy: String,
    },
    /// It does not say which vRoT it is of.
    #[error(
        "`{path}` cannot be used, and no other vRoT is put in the place of the one that it named: \
         restore it, or remove the folder if that vRoT is not needed any more"
    )]
    File {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: FolderFileError,
    },
}

/// The path of a folder that a vRoT is to be made for.
pub(super) fn folder(descriptor: Option<OwnedFd>, caller: u32) -> Result<String, PresentedError> {
    let folder = File::from(descriptor.ok_or(PresentedError::Missing)?);
    let (found, path) = (folder.metadata()?, path_of(&folder)?);
    let unfit = |what, remedy: String| {
        let path = path.clone();
        Err(PresentedError::Unfit { path, what, remedy })
    };
    if !found.is_dir() {
        return unfit("no folder", "name the VM's folder".to_owned());
    }
    if caller != 0 && found.uid() != caller {
        let remedy = format!("give it to user {caller}, who sets it up");
        return unfit("another user's folder", remedy);
    }
    if found.mode() & 0o022 != 0 {
        let remedy = format!("take that right away with `chmod go-w {path}`");
        return unfit("a folder in which others can write", remedy);
    }
    Ok(path)
}

/// What the file of a folder says, and which file it is. Blocks as long as its file system does.
pub(super) fn file(
    descriptor: Option<OwnedFd>,
    lock: Option<Lock>,
    caller: u32,
) -> Result<Presented, PresentedError> {
    let file = File::from(descriptor.ok_or(PresentedError::Missing)?);
    let (found, path) = (file.metadata()?, path_of(&file)?);
    let unfit = |what, remedy: String| {
        let path = path.clone();
        Err(PresentedError::Unfit { path, what, remedy })
    };
    if !found.is_file() || found.nlink() != 1 {
        let remedy = "restore the folder".to_owned();
        return unfit("no file of its own", remedy);
    }
    if caller != 0 && found.uid() != caller {
        let remedy = format!("give it to user {caller}, who starts the VM's TPM");
        return unfit("another user's file", remedy);
    }
    if found.mode() & 0o077 != 0 {
        let remedy = format!("take that right away with `chmod 600 {path}`");
        return unfit("a file that others can read or write", remedy);
    }
    let said = FolderFile::read(&file).map_err(|source| PresentedError::File {
        path: path.clone(),
        source,
    })?;
    let born = found.created().ok();
    let born = born.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let folder = path
        .strip_suffix(NAME)
        .map(|path| path.trim_end_matches('/'));
    Ok(Presented {
        vrot: VrotId::from_uuid(said.vrot),
        host: said.host,
        token: digest(&said.token, lock),
        path: folder.unwrap_or(&path).to_owned(),
        file: FileIdentity {
            inode: found.ino(),
            born: born.and_then(|age| u64::try_from(age.as_nanos()).ok()),
        },
        uid: found.uid(),
    })
}

/// What the record holds of a token, and of the lock beside it. The token is long and random: with the
/// record alone, nobody guesses at the launcher's secret.
pub(super) fn digest(token: &str, lock: Option<Lock>) -> Digest32 {
    let lock = lock.as_ref().map(Lock::as_bytes);
    let lock = lock.map(<[u8; 32]>::as_slice).unwrap_or_default();
    Digest32::of(&[token.as_bytes(), &[0], lock].concat())
}

/// Where the kernel says that it is, for people and for the record.
fn path_of(file: &File) -> io::Result<String> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(link)?;
    path.into_os_string()
        .into_string()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its path is not UTF-8"))
}
