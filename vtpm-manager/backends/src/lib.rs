//! The processes that run vRoTs: how they are spawned, found again, spoken to and ended.
//!
//! A backend listens on sockets in a folder of its own; the manager dials. Backends are no more
//! tied to the manager than that: they outlive it, and its successor finds them by their folders.

pub mod background;
mod channel;
mod connection;
mod folder;
mod handle;
mod log_lines;
mod order;
mod process;
mod quoting;
mod share;
mod supervisor;
mod takeover;
mod turns;
mod users;
mod vmms;
mod zygote;

use std::path::PathBuf;
use std::time::Duration;

use backend_link::frame::FrameError;
use backend_link::instance::InstanceError;
use backend_link::message::PROTOCOL;
use cert_chain::VrotId;

pub use channel::ExecuteChannel;
pub use folder::{RuntimeFolder, running};
pub use handle::Backend;
pub use order::{Ended, Ending, GuestRole, InstanceId, Observed, Role};
pub use quoting::{NotQuoted, QuotedVm};
pub use share::Share;
pub use takeover::Dismissed;
pub use turns::{NextTurn, Turns};
pub use users::{Isolation, UidRange};
pub use vmms::Vmms;
pub use zygote::{Executable, Zygote};

/// Why a backend did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It did not answer in time.
    #[error("the backend of vRoT {vrot} did not {what} within {} s", limit.as_secs())]
    Deadline {
        /// Whose.
        vrot: VrotId,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// It has ended.
    #[error("the backend of vRoT {vrot} has ended: {reason}")]
    Ended {
        /// Whose.
        vrot: VrotId,
        /// What is known of it.
        reason: String,
    },
    /// Its folder cannot be used.
    #[error("the folder `{}` for a backend's sockets cannot be {action}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// What came is no message.
    #[error(
        "the backend of vRoT {vrot} does not speak our language: manager and backend must be of one version"
    )]
    Frame {
        /// Whose.
        vrot: VrotId,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// It is not certain that no other process serves the vRoT.
    #[error("vRoT {vrot} may be live elsewhere")]
    Instance {
        /// Which.
        vrot: VrotId,
        /// What is in the way.
        #[source]
        source: InstanceError,
    },
    /// The store does not take its state.
    #[error(
        "the state of vRoT {vrot} is not durable: its backend goes on, as its state would be lost"
    )]
    NotDurable {
        /// Whose.
        vrot: VrotId,
    },
    /// Which process it is cannot be told.
    #[error("the process of the backend of vRoT {vrot} cannot be watched")]
    Process {
        /// Whose.
        vrot: VrotId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Every backend needs a user of its own, and there are not that many.
    #[error("all {count} users of `backend_uids` belong to backends: make that range larger")]
    NoUserLeft {
        /// How many there are.
        count: u32,
    },
    /// Backends of a manager that is root would be root.
    #[error(
        "the manager is root, but lacks {missing} to run backends as users of their own: grant it, \
         or run the manager as another user"
    )]
    Root {
        /// The capability.
        missing: String,
    },
    /// The process could not be started.
    #[error("the backend `{}` cannot be started", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It serves another vRoT than its folder says.
    #[error(
        "the backend in the folder of vRoT {vrot} serves another vRoT or generation: it is not adopted"
    )]
    Stranger {
        /// Whose folder it is.
        vrot: VrotId,
    },
    /// It is of a manager that spoke otherwise.
    #[error(
        "the backend of vRoT {vrot} speaks version {version} of its messages, this manager \
         {PROTOCOL}: its guest is served, but nothing else can be done with it until it is stopped"
    )]
    Version {
        /// Whose.
        vrot: VrotId,
        /// What it speaks.
        version: u32,
    },
}

impl BackendError {
    /// Whether the backend may be well, and speaks otherwise than this manager.
    pub fn is_of_another_version(&self) -> bool {
        match self {
            Self::Version { .. } => true,
            Self::Frame { source, .. } => !matches!(source, FrameError::Io(_)),
            Self::Deadline { .. }
            | Self::Ended { .. }
            | Self::Folder { .. }
            | Self::Instance { .. }
            | Self::NoUserLeft { .. }
            | Self::NotDurable { .. }
            | Self::Process { .. }
            | Self::Root { .. }
            | Self::Spawn { .. }
            | Self::Stranger { .. } => false,
        }
    }
}
