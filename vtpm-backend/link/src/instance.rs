//! One process at a time serves a vRoT. The kernel sees to it, whatever a manager believes: two
//! live TPMs with one identity key would each go on from the same state.
//!
//! The file that it keeps locked says in its first line which process it is, and in the second one
//! whether it has answered a command whose state is not durable. So whoever finds it dead knows
//! whether something may be lost, also if no manager was there to be told.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// The right to serve one vRoT, until it is dropped or the process ends.
///
/// The kernel releases the lock when the file is closed. Nothing else is called for that: a
/// confined backend may call nothing else, and its end must not depend on it.
#[derive(Debug)]
pub struct Instance {
    lock: File,
    path: PathBuf,
    /// Where the second line is.
    second_line: u64,
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
    #[error("process {process} serves this vRoT already")]
    Taken {
        /// What it says it is.
        process: String,
    },
}

/// A manager that looks whether a vRoT is served has the lock for a moment.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);
/// Second lines, of one length: each is written over the other, which needs no room on the disk.
const DURABLE: &str = "durable \n";
const DEGRADED: &str = "degraded\n";
/// Longer than what any process writes.
const MAX_LENGTH: u64 = 64;

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

    /// Takes the right if no process has it: to find that out, or to clean up.
    pub fn look(path: &Path) -> Result<Self, InstanceError> {
        loop {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|source| failed(path, source))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, path) => {
                    return Ok(Self {
                        lock: file,
                        path: path.to_owned(),
                        second_line: 0,
                    });
                }
                // Its last holder removed the file meanwhile, so the lock on it excludes no other process.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    // A process that has just taken it has not written its number yet.
                    let lines = read(&mut file).unwrap_or_default();
                    let process = lines.lines().next().unwrap_or_default().to_owned();
                    return Err(InstanceError::Taken { process });
                }
                Err(TryLockError::Error(error)) => return Err(failed(path, error)),
            }
        }
    }

    /// Gives the right up in so many words: a program that this process is starting has a copy of the
    /// open file, and so keeps the lock until it is executed.
    pub fn give_up(self) -> Result<(), InstanceError> {
        self.lock
            .unlock()
            .map_err(|source| failed(&self.path, source))
    }

    /// Gives the right up, and the file with it.
    pub fn remove(self) -> Result<(), InstanceError> {
        fs::remove_file(&self.path).map_err(|source| failed(&self.path, source))
    }

    /// Writes the number of this process, for people and managers who have to end it.
    fn sign(&mut self) -> io::Result<()> {
        let process = format!("{}\n", std::process::id());
        self.second_line = process.len() as u64;
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        // In one write: half of it would be taken for a degraded process.
        self.lock.write_all((process + DURABLE).as_bytes())
    }

    /// Notes whether a command was answered whose state is not durable. It is there after the end of
    /// this process, however that comes about, as long as the system goes on.
    pub fn note(&self, degraded: bool) -> io::Result<()> {
        let line = if degraded { DEGRADED } else { DURABLE };
        self.lock.write_all_at(line.as_bytes(), self.second_line)
    }
}

/// Whether the process that had the right last may have lost what it had answered: it says that it
/// was degraded, or does not say that it was not. Meant for when it has ended.
pub fn may_have_lost(path: &Path) -> Result<bool, InstanceError> {
    let lines = match File::open(path).and_then(|mut file| read(&mut file)) {
        // Removed when all was durable, or never written: then the process never had a state.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(|source| failed(path, source))?,
    };
    Ok(!lines.is_empty() && !lines.ends_with(DURABLE))
}

/// Since when the process that has the right, or had it last, has been answering ahead of the store;
/// none, if it is not or does not say.
pub fn degraded_since(path: &Path) -> io::Result<Option<SystemTime>> {
    let mut file = File::open(path)?;
    let is_degraded = read(&mut file)?.ends_with(DEGRADED);
    is_degraded.then(|| file.metadata()?.modified()).transpose()
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
    fn who_finds_a_dead_process_knows_whether_it_was_degraded() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("lock");
        assert!(!may_have_lost(&path)?, "there was none");
        drop(Instance::look(&path)?);
        assert!(!may_have_lost(&path)?, "it never began");
        let instance = Instance::take(&path)?;
        assert!(!may_have_lost(&path)?);
        for degraded in [true, false, true] {
            instance.note(degraded)?;
            assert_eq!(may_have_lost(&path)?, degraded);
            assert_eq!(degraded_since(&path)?.is_some(), degraded);
        }
        drop(instance);
        assert!(may_have_lost(&path)?, "it is known after its end");
        let next = Instance::take(&path)?;
        assert!(!may_have_lost(&path)?);
        let Err(InstanceError::Taken { process }) = Instance::look(&path) else {
            anyhow::bail!("it is taken");
        };
        assert_eq!(process, std::process::id().to_string());
        drop(next);
        for unclear in ["4711", "4711\n", "4711\nsomething\n", "\0\0\0\0"] {
            fs::write(&path, unclear)?;
            assert!(may_have_lost(&path)?, "{unclear:?}");
        }
        Ok(())
    }

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
        // The file of the last one excludes no other process.
        drop(Instance::take(&path)?);
        Ok(())
    }
}
