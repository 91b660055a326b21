//! Where states are kept: in a folder, or in one linear file.

mod folder;
mod linear;
mod linear_file;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::{FormatError, Key, StateKind, read_state, write_state};
use folder::Folder;
use linear_file::LinearFile;

pub use linear::LinearError;

/// Which place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder with a file for each part (`dir://PATH`).
    Folder(PathBuf),
    /// One file, or a block device, with all parts (`file://PATH`).
    File(PathBuf),
}

/// Why a text names no place.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is no place for a TPM's state: give a folder, dir://FOLDER or file://FILE")]
pub struct LocationError {
    /// What was given.
    pub text: String,
}

/// How a place is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Whether it is made if it is not there, and a blank file or device is made a store.
    pub create: bool,
    /// The permissions of files that are made; swtpm's are 0640.
    pub mode: u32,
    /// Whether files that are there get these permissions as well (swtpm's `mode=`).
    pub force_mode: bool,
    /// Whether a folder may be named by a symbolic link, as it may for swtpm. A linear file may not.
    pub follow_link: bool,
}

/// A place where states are kept. Each part of the state is written as a whole, survives a loss of power
/// when that returns, and is read as it was written last, or as it was before if writing failed.
#[derive(Debug)]
pub struct StateStore {
    location: Location,
    medium: Medium,
    key: Option<Key>,
}

#[derive(Debug)]
enum Medium {
    Folder(Folder),
    File(Box<LinearFile>),
}

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it.
    #[error("{} is in use by another process: by swtpm or by another backend", path.display())]
    InUse {
        /// The place.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{} cannot be {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than a state, or one under another key.
    #[error("{} holds no state that can be used; nothing was changed", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// A linear file is damaged, or is none.
    #[error("{} is no linear store that can be used; nothing was changed", path.display())]
    Linear {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinearError,
    },
    /// The state was taken over by somebody else.
    #[error("{} is not used any more. {note}", path.display())]
    Retired {
        /// The file.
        path: PathBuf,
        /// Who took it over, and what can be done.
        note: String,
    },
    /// What was kept of another state would be lost.
    #[error(
        "{} is the state of a TPM that was taken over from here before: move it away if it is not needed; nothing \
         was changed",
        path.display()
    )]
    KeptBefore {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing that could be reinstated.
    #[error("{} was not taken over by anybody, or not from here: nothing was changed", path.display())]
    NotRetired {
        /// The place.
        path: PathBuf,
    },
    /// A state cannot be put into the form of a file.
    #[error("the state cannot be written")]
    Unwritable(#[source] FormatError),
}

impl StoreError {
    /// Whether the place was [retired](StateStore::retire).
    pub fn says_retired(&self) -> bool {
        let linear = |source: &LinearError| *source == LinearError::Retired;
        match self {
            Self::Retired { .. } => true,
            Self::Linear { source, .. } => linear(source),
            _ => false,
        }
    }
}

impl Location {
    /// The folder or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    /// As in swtpm's `backend-uri=` and swtpm_setup's `--tpmstate`: without a scheme it is a folder.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        let (make, path): (fn(PathBuf) -> Self, _) = match text.split_once("://") {
            None => (Self::Folder, text),
            Some(("dir", path)) => (Self::Folder, path),
            Some(("file", path)) => (Self::File, path),
            Some(_) => (Self::Folder, ""),
        };
        match path {
            "" => Err(LocationError {
                text: text.to_owned(),
            }),
            path => Ok(make(path.into())),
        }
    }
}

impl fmt::Display for Location {
    /// As `backend-uri=` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "dir://{}", path.display()),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl Default for StoreOptions {
    /// As swtpm does.
    fn default() -> Self {
        Self {
            create: true,
            mode: 0o640,
            force_mode: false,
            follow_link: true,
        }
    }
}

impl StateStore {
    /// Opens a place, whose files are encrypted if there is a key. It is not locked yet.
    pub fn open(
        location: &Location,
        options: StoreOptions,
        key: Option<Key>,
    ) -> Result<Self, StoreError> {
        let medium = match location {
            Location::Folder(path) => Medium::Folder(Folder::open(path, options)?),
            Location::File(path) => Medium::File(Box::new(LinearFile::open(path, options)?)),
        };
        Ok(Self {
            location: location.clone(),
            medium,
            key,
        })
    }

    /// Excludes all other users until this is closed or [`unlock`](Self::unlock)ed; tries so many more
    /// times, 10 ms apart, if another one has it.
    pub fn lock(&mut self, retries: u32) -> Result<(), StoreError> {
        let locked = match &mut self.medium {
            Medium::Folder(folder) => folder.lock(retries),
            Medium::File(file) => file.lock(retries),
        }?;
        match locked {
            true => Ok(()),
            false => Err(StoreError::InUse {
                path: self.location.path().to_owned(),
            }),
        }
    }

    /// Lets others use it.
    pub fn unlock(&mut self) -> Result<(), StoreError> {
        match &mut self.medium {
            Medium::Folder(folder) => folder.unlock(),
            Medium::File(file) => file.unlock(),
        }
    }

    /// A part of the state; `None` if there is none.
    pub fn load(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let Some(file) = self.load_file(kind)? else {
            return Ok(None);
        };
        let state = read_state(&file, self.key.as_ref());
        state.map(Some).map_err(|source| StoreError::Format {
            path: self.path_of(kind),
            source,
        })
    }

    /// The same as it lies there: with its header, and encrypted.
    pub fn load_file(&self, kind: StateKind) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        match &self.medium {
            Medium::Folder(folder) => folder.load(kind),
            Medium::File(file) => file.load(kind),
        }
    }

    /// How many bytes that is; `None` if there is no such part.
    pub fn size(&self, kind: StateKind) -> Result<Option<u64>, StoreError> {
        match &self.medium {
            Medium::Folder(folder) => folder.size(kind),
            Medium::File(file) => file.size(kind),
        }
    }

    /// Puts a part of the state in place of the last one.
    pub fn save(&mut self, kind: StateKind, state: &[u8]) -> Result<(), StoreError> {
        let file = write_state(state, self.key.as_ref()).map_err(StoreError::Unwritable)?;
        match &mut self.medium {
            Medium::Folder(folder) => folder.save(kind, &file),
            Medium::File(linear) => linear.save(kind, &file),
        }
    }

    /// Removes a part of the state, if it is there.
    pub fn remove(&mut self, kind: StateKind) -> Result<(), StoreError> {
        match &mut self.medium {
            Medium::Folder(folder) => folder.remove(kind),
            Medium::File(file) => file.remove(kind),
        }
    }

    /// Takes the place out of use for good: neither swtpm nor this project starts a TPM from it any
    /// more, and neither makes a new one there. What it holds stays, for
    /// [`reinstate`](Self::reinstate). Whoever tries a folder reads the note.
    pub fn retire(&mut self, note: &str) -> Result<(), StoreError> {
        match &mut self.medium {
            Medium::Folder(folder) => folder.retire(note),
            Medium::File(file) => file.retire(),
        }
    }

    /// Puts another note into a place that was retired. A linear file has no room for any.
    pub fn renew_note(&mut self, note: &str) -> Result<(), StoreError> {
        match &mut self.medium {
            Medium::Folder(folder) => folder.renew_note(note),
            Medium::File(_) => Ok(()),
        }
    }

    /// Puts a place that was retired into use again.
    pub fn reinstate(location: &Location) -> Result<(), StoreError> {
        match location {
            Location::Folder(path) => Folder::reinstate(path),
            Location::File(path) => LinearFile::reinstate(path),
        }
    }

    /// Which place it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The key of its files.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The file in which a part of the state lies.
    fn path_of(&self, kind: StateKind) -> PathBuf {
        match &self.location {
            Location::Folder(path) => path.join(folder::file_name(kind)),
            Location::File(path) => path.clone(),
        }
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        path,
        action,
        source,
    }
}

/// Gives a file that is open these permissions, whatever the process's mask is.
fn set_mode(file: impl AsFd, mode: u32) -> io::Result<()> {
    use nix::sys::stat::{Mode, fchmod};
    Ok(fchmod(file, Mode::from_bits_truncate(mode))?)
}
