//! Measures what a VM is about to be launched with (ISO/IEC 27070 §6.3).
//!
//! Whoever launches VMs names the parts and hands over the files, open: the manager opens no path, so it
//! tells nobody about a file that they cannot read. It reads each file from the beginning to the end and
//! takes the SHA-256 value of the contents; a file that changes meanwhile is refused.
//!
//! | file | what |
//! |---|---|
//! | `parts.rs` | which parts there are, and where their values come from |
//! | `received.rs` | files that come with a request |
//! | `file.rs` | the digest of one file |

mod file;
mod parts;
mod received;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use attestation::launch::{Launch, LaunchError, LaunchPart, PartError, PartId, PartValue};
use tokio::sync::{Semaphore, oneshot};

use file::digest_of;

pub use file::FileError;
pub use parts::{PartToMeasure, parts_to_measure};
pub use received::{Files, ReceivedFile, StreamWithFiles};

/// Measures launches, a few at a time.
#[derive(Debug)]
pub struct Measuring {
    turns: Arc<Semaphore>,
}

/// Why a launch was not measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A part that nobody measures.
    #[error(
        "a launch has no part `{part}`: files are firmware, firmware-variables, kernel, initramfs, \
         disk:NAME and file:NAME; settings are machine, cpus, cpu-model, memory-mib and value:NAME; texts \
         are command-line and text:NAME"
    )]
    UnknownPart {
        /// What was asked for.
        part: PartId,
    },
    /// A part from where it does not come.
    #[error("the part `{part}` is measured of a {expected}")]
    Source {
        /// Which.
        part: PartId,
        /// What was expected.
        expected: &'static str,
    },
    /// A number that is none, or is not written as others write it.
    #[error("`{found}` is no value of `{part}`: that is a number from 1 on, without leading zeros")]
    Number {
        /// Which.
        part: PartId,
        /// What was given.
        found: PartValue,
    },
    /// A descriptor that did not come along.
    #[error(
        "the part `{part}` names descriptor {index}, and {count} came with the request: pass files with \
         SCM_RIGHTS, together with the first bytes of the request, at most {MAX_DESCRIPTORS}"
    )]
    NoDescriptor {
        /// Which.
        part: PartId,
        /// What it names.
        index: u32,
        /// How many there were.
        count: usize,
    },
    /// Not a part.
    #[error(transparent)]
    Part(#[from] PartError),
    /// Not a launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file that is not measured.
    #[error("the file of `{part}` is not measured: {source}")]
    File {
        /// Which.
        part: PartId,
        /// Why.
        #[source]
        source: FileError,
    },
    /// No thread.
    #[error("a thread to measure with cannot be started")]
    Thread(#[source] std::io::Error),
    /// The thread ended by a fault of ours.
    #[error("the manager made an error while it measured: see its log")]
    Fault,
    /// The manager ends.
    #[error("the manager is shutting down")]
    Stopped,
}

/// Descriptors that come with a request: a launch has no more files.
pub const MAX_DESCRIPTORS: usize = attestation::launch::MAX_PARTS;
/// Launches that are measured at a time. A file on a file system that does not answer keeps one of these
/// turns until it does.
const TURNS: usize = 8;

impl Default for Measuring {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(TURNS)),
        }
    }
}

impl Measuring {
    /// Measures these parts, in a thread of their own: a file may be large, and may be on a file system
    /// that does not answer. Given up, it ends at the next read.
    pub async fn measure(&self, parts: Vec<PartToMeasure>) -> Result<Launch, MeasureError> {
        let turns = Arc::clone(&self.turns);
        let turn = turns
            .acquire_owned()
            .await
            .map_err(|_| MeasureError::Stopped)?;
        let wanted = Wanted::default();
        let still_wanted = Arc::clone(&wanted.0);
        let (done, measured) = oneshot::channel();
        // No thread of the runtime: that could not end before a file system answers.
        thread::Builder::new()
            .name("launch".to_owned())
            .spawn(move || {
                // Whoever asked may have gone.
                let _ = done.send(measured_launch(parts, &still_wanted));
                drop(turn);
            })
            .map_err(MeasureError::Thread)?;
        let launch = measured.await.unwrap_or(Err(MeasureError::Fault));
        drop(wanted);
        launch
    }
}

/// As long as it is kept, somebody waits for the measurement.
struct Wanted(Arc<AtomicBool>);

impl Default for Wanted {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn measured_launch(parts: Vec<PartToMeasure>, wanted: &AtomicBool) -> Result<Launch, MeasureError> {
    let measured = parts.into_iter().map(|part| match part {
        PartToMeasure::Known(part) => Ok(part),
        PartToMeasure::File { id, file } => match digest_of(&file, wanted) {
            Ok(digest) => Ok(LaunchPart {
                id,
                value: PartValue::Digest(digest),
            }),
            Err(source) => Err(MeasureError::File { part: id, source }),
        },
    });
    Ok(Launch::new(measured.collect::<Result<_, _>>()?)?)
}
