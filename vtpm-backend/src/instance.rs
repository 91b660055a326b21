//! One process at a time serves a vRoT. The kernel sees to it, whatever a manager believes: two
//! live TPMs with one identity key would each go on from the same state.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The right to serve one vRoT, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Instance {
    lock: Flock<File>,
    path: PathBuf,
}

/// Why a vRoT is not to be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The file cannot be used.
    #[error("`{}`, which keeps a vRoT from running twice, cannot be locked", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process serves it.
    #[error("process {process} serves this vRoT, so nobody else does")]
    Taken {
        /// What it says it is.
        process: String,
    },
}

/// A manager that looks whether a vRoT is served has the lock for a moment.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

impl Instance {
    /// Takes the right, to keep it: waits for those who only look.
    pub fn take(path: &Path) -> Result<Self, InstanceError> {
        let deadline = Instant::now() + PATIENCE;
        let mut instance = loop {
            match Self::look(path) {
                Err(InstanceError::Taken { .. }) if Instant::now() < deadline => sleep(PAUSE),
                other => break other?,
            }
        };
        let signed = instance.sign();
        signed.map_err(|source| failed(path, source))?;
        Ok(instance)
    }

    /// Takes the right if nobody has it: to see that, or to clean up.
    pub fn look(path: &Path) -> Result<Self, InstanceError> {
        loop {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|source| failed(path, source))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if is_at(&lock, path) => {
                    let path = path.to_owned();
                    return Ok(Self { lock, path });
                }
                // Its last holder removed the file meanwhile: it keeps nobody away any more.
                Ok(_) => {}
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let mut process = String::new();
                    // Who has just taken it has not signed yet.
                    let _ = file.read_to_string(&mut process);
                    return Err(InstanceError::Taken { process });
                }
                Err((_, error)) => return Err(failed(path, error.into())),
            }
        }
    }

    /// Gives the right up, and the file with it.
    pub fn remove(self) -> Result<(), InstanceError> {
        fs::remove_file(&self.path).map_err(|source| failed(&self.path, source))
    }

    /// For people and managers who want to know whom to end.
    fn sign(&mut self) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        write!(self.lock, "{}", std::process::id())
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn failed(path: &Path, source: io::Error) -> InstanceError {
    InstanceError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vrot_is_served_once_and_again_after_that() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("lock");
        let one = Instance::take(&path)?;
        let own = std::process::id().to_string();
        assert!(matches!(
            Instance::take(&path),
            Err(InstanceError::Taken { process }) if process == own
        ));
        drop(one);
        let next = Instance::take(&path)?;
        next.remove()?;
        assert!(!path.exists());
        // The file of the last one keeps nobody away.
        drop(Instance::take(&path)?);
        Ok(())
    }
}
