//! Why a directory is not read as records, or not written.

use std::fmt;
use std::io;
use std::path::PathBuf;

use archive::ArchiveError;
use archive::records::{MAX_RECORD_CONTENT, NameError};

/// Why a directory is not read as records, or records are not written to one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFilesError {
    /// Something went on while it was read.
    #[error("{} changed while it was read; try again when nothing writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Neither a file nor a directory.
    #[error("{} is {kind}; only files and directories are archived", path.display())]
    Kind {
        /// What has the name.
        path: PathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// A name that records cannot have.
    #[error("{} cannot be a record's name", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: NameError,
    },
    /// A name in another encoding.
    #[error("the name of {} is not UTF-8; rename it", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Reading.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A large file.
    #[error(
        "{} has {length} bytes; {MAX_RECORD_CONTENT} is the most that a record has: archive it by itself",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How many.
        length: u64,
    },
    /// What was done with a record.
    #[error(transparent)]
    Record(#[from] ArchiveError),
    /// Writing.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is neither a file nor a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A symbolic link.
    Link,
    /// A device, a socket, a named pipe.
    Special,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "a symbolic link",
            Self::Special => "a device, a socket or a named pipe",
        })
    }
}
