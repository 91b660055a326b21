//! Test peer: somebody on the TPM's bus, who listens, and changes what passes.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use tpm_wire::{MAX_SIZE, read_frame};

use trust_anchor::Tcti;

/// The bytes that went by.
pub(crate) struct Tap {
    seen: Arc<Mutex<Vec<u8>>>,
    path: PathBuf,
}

/// Changes what passes: a whole command, before the TPM gets it, or a whole response.
pub(crate) trait Change: Send {
    fn command(&mut self, _command: &mut Vec<u8>) {}

    /// `command` is what the TPM answers, as it left the host.
    fn response(&mut self, _command: &[u8], _response: &mut Vec<u8>) {}
}

/// Changes nothing.
struct Listener;

impl Change for Listener {}

impl Tap {
    /// Listens at `path` and passes everything on to `tpm`, remembering it. Its threads end
    /// with the test's process.
    pub(crate) fn open(path: &Path, tpm: &Path) -> Result<Self> {
        Self::changing(path, tpm, Listener)
    }

    /// The same, and changes it.
    pub(crate) fn changing(path: &Path, tpm: &Path, change: impl Change + 'static) -> Result<Self> {
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let change: Arc<Mutex<dyn Change>> = Arc::new(Mutex::new(change));
        let data = UnixListener::bind(path)?;
        let (upstream, heard) = (tpm.to_owned(), Arc::clone(&seen));
        thread::spawn(move || {
            for stack in data.incoming() {
                let (stack, tpm) = (stack?, UnixStream::connect(&upstream)?);
                let (change, heard) = (Arc::clone(&change), Arc::clone(&heard));
                thread::spawn(move || relay(stack, tpm, &change, &heard));
            }
            io::Result::Ok(())
        });
        let at = |path: &Path| PathBuf::from(format!("{}.ctrl", path.display()));
        let control = UnixListener::bind(at(path))?;
        let upstream = at(tpm);
        thread::spawn(move || {
            for stack in control.incoming() {
                let (stack, tpm) = (stack?, UnixStream::connect(&upstream)?);
                let (from, to) = (stack.try_clone()?, tpm.try_clone()?);
                thread::spawn(move || copy(from, to));
                thread::spawn(move || copy(tpm, stack));
            }
            io::Result::Ok(())
        });
        Ok(Self {
            seen,
            path: path.to_owned(),
        })
    }

    pub(crate) fn tcti(&self) -> Tcti {
        Tcti::SwtpmPath(self.path.clone())
    }

    /// Whether these bytes went by.
    pub(crate) fn saw(&self, bytes: &[u8]) -> bool {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .windows(bytes.len())
            .any(|window| window == bytes)
    }
}

/// One command after the other, each with its response.
fn relay(
    mut stack: UnixStream,
    mut tpm: UnixStream,
    change: &Mutex<dyn Change>,
    seen: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let sent = next_frame(&mut stack)?;
        let mut command = sent.clone();
        lock(change).command(&mut command);
        lock(seen).extend_from_slice(&command);
        tpm.write_all(&command)?;
        let mut response = next_frame(&mut tpm)?;
        lock(seen).extend_from_slice(&response);
        lock(change).response(&sent, &mut response);
        stack.write_all(&response)?;
    }
}

fn next_frame(from: &mut UnixStream) -> io::Result<Vec<u8>> {
    Ok(read_frame(from, MAX_SIZE)?.ok_or(io::ErrorKind::UnexpectedEof)?)
}

fn copy(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}

fn lock<T: ?Sized>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
