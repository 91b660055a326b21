//! Why nothing was handed over.

use std::io;
use std::path::PathBuf;

use crate::folder_file::{FolderFileError, NAME};

/// Why nothing was handed over, or what was handed over has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The manager cannot be reached.
    #[error(
        "the manager of this host cannot be reached at `{}` (is vtpm-managerd running, and is this \
         user a member of the group `vrot` and named in `[swtpm] users` of its configuration?)",
        socket.display()
    )]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the manager failed")]
    Connection(#[source] io::Error),
    /// The manager ended the connection, or answered something else.
    #[error("the manager did not answer: see its log")]
    NoAnswer,
    /// The manager does not do it.
    #[error("{reason}")]
    Refused {
        /// Why, and what helps.
        reason: String,
    },
    /// The vRoT has ended.
    #[error("the vRoT has ended: {reason}")]
    Ended {
        /// What is known of it.
        reason: String,
    },
    /// The VM's folder cannot be used.
    #[error("the folder `{}` cannot be used", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file in it cannot be used.
    #[error(
        "`{}/{NAME}` cannot be used, and no other vRoT is put in the place of the one that it named: \
         restore the file, or remove the folder if that vRoT is not needed any more",
        path.display()
    )]
    File {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: FolderFileError,
    },
    /// Another program is at it.
    #[error("another program sets up the vRoT of `{}` at this moment", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A swtpm was here.
    #[error(
        "`{}` holds the state of a swtpm (`{file}`), and no other TPM is put in its place: import it \
         into the manager, or move it away if it is not needed any more",
        path.display()
    )]
    PlainState {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The VMM's socket cannot be used.
    #[error("the VMM's socket cannot be used")]
    Listener(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for")]
    Signals(#[source] io::Error),
    /// The configuration of this host cannot be used.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to write.
        problem: String,
    },
}
