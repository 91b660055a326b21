//! The way to a device's TPM, as a kernel's resource manager is: several programs at a time, each command in
//! its turn, and keys that a program left in the TPM go with it. A test can stop a program at a command.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tpm_wire::{MAX_SIZE, NO_SESSIONS, frame, read_frame};

/// A relay before a software TPM. Its threads end with the process.
pub(crate) struct TpmRelay {
    socket: PathBuf,
    hold: Arc<Mutex<Option<Hold>>>,
}

/// A command at which its program is stopped.
struct Hold {
    /// Its code (`TPM_CC`).
    command: u32,
    /// How many of these come before it.
    before: usize,
    reached: Sender<Sender<Then>>,
}

/// A program that waits at its command.
pub(crate) struct Held(Receiver<Sender<Then>>);

/// What becomes of the command.
pub(crate) enum Then {
    Executed,
    /// Never, for its program is dead.
    Dropped,
}

/// Longer than any program needs to get to its command.
const PATIENCE: Duration = Duration::from_secs(120);

const CC_CREATE_PRIMARY: u32 = 0x0000_0131;
const CC_FLUSH_CONTEXT: u32 = 0x0000_0165;

impl TpmRelay {
    /// Relays what comes at `socket` to the TPM at another one.
    pub(crate) fn start(tpm: &Path, socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let hold = Arc::<Mutex<Option<Hold>>>::default();
        let tpm = Arc::new(Mutex::new(tpm.to_owned()));
        let holding = Arc::clone(&hold);
        thread::Builder::new().spawn(move || {
            for client in listener.incoming().flatten() {
                let (tpm, hold) = (Arc::clone(&tpm), Arc::clone(&holding));
                // A program that has gone is nobody's concern.
                let _ = thread::Builder::new().spawn(move || serve(client, &tpm, &hold));
            }
        })?;
        Ok(Self {
            socket: socket.to_owned(),
            hold,
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops the program that comes to this command for the time after `before`.
    pub(crate) fn hold(&self, command: u32, before: usize) -> Held {
        let (reached, held) = channel();
        let hold = Hold {
            command,
            before,
            reached,
        };
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
        Held(held)
    }
}

impl Held {
    /// Waits for the program to be there, has something happen meanwhile, and goes on.
    pub(crate) fn meanwhile(self, happens: impl FnOnce() -> Result<Then>) -> Result<()> {
        let go_on = (self.0.recv_timeout(PATIENCE)).context("no program came to the command")?;
        go_on.send(happens()?).context("the relay has ended")
    }
}

fn serve(
    mut client: UnixStream,
    tpm: &Mutex<PathBuf>,
    hold: &Mutex<Option<Hold>>,
) -> io::Result<()> {
    let mut left = BTreeSet::new();
    let mut relay = || -> io::Result<()> {
        while let Some(command) = read_frame(&mut client, MAX_SIZE)? {
            let code = word(&command, 6);
            if let Some(go_on) = reached(hold, code)
                && !matches!(go_on.recv(), Ok(Then::Executed))
            {
                break;
            }
            let response = execute(tpm, &command)?;
            if code == Some(CC_CREATE_PRIMARY) && word(&response, 6) == Some(0) {
                left.extend(word(&response, 10));
            }
            if code == Some(CC_FLUSH_CONTEXT) {
                word(&command, 10).map(|handle| left.remove(&handle));
            }
            client.write_all(&response)?;
        }
        Ok(())
    };
    let relayed = relay();
    for handle in left {
        let flush = frame(NO_SESSIONS, CC_FLUSH_CONTEXT, &handle.to_be_bytes());
        execute(tpm, &flush)?;
    }
    relayed
}

/// Whether a program is to be stopped at this command; then, what it waits for.
fn reached(hold: &Mutex<Option<Hold>>, code: Option<u32>) -> Option<Receiver<Then>> {
    let mut hold = hold.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = hold.as_mut().filter(|hold| Some(hold.command) == code)?;
    if wanted.before > 0 {
        wanted.before -= 1;
        return None;
    }
    let (go_on, waits) = channel();
    let hold = hold.take()?;
    hold.reached.send(go_on).ok()?;
    Some(waits)
}

/// One command. The TPM serves one connection at a time, and others wait for it to end.
fn execute(tpm: &Mutex<PathBuf>, command: &[u8]) -> io::Result<Vec<u8>> {
    let path = tpm.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tpm = UnixStream::connect(&*path)?;
    tpm.write_all(command)?;
    read_frame(&mut tpm, MAX_SIZE)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}
