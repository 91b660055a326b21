//! Somebody between manager and physical TPM who kills at a chosen step of a commit. No program has
//! to know of it: each batch is written to the store, then to the rollback registers, then
//! acknowledged, and the writes to the registers pass by here.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tpm_wire::{Header, MAX_SIZE, read_frame};

/// The rollback registers' NV indices.
pub(crate) const VOLATILE: u32 = 0x0180_5652;
pub(crate) const DURABLE: u32 = 0x0180_5653;

/// A step of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The store has the batch, this register has not.
    BeforeWrite(u32),
    /// The register has it as well, and the manager does not know.
    AfterWrite(u32),
}

/// The bus; its threads end with the test's process.
pub(crate) struct Bus(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    at: Option<Step>,
    /// How often that step comes before it is the one.
    before: u32,
    victims: Vec<i32>,
    /// What is to be signed and contains this is held back.
    held: Option<Vec<u8>>,
}

/// `TPM2_Hash`, which takes what is to be signed as it is.
const HASH: u32 = 0x17d;
const NV_WRITE: u32 = 0x137;

impl Bus {
    /// Listens at `path` and `path.ctrl`, and passes on to the TPM at `tpm`.
    pub(crate) fn between(path: &str, tpm: &str) -> Result<Self> {
        let plan = Arc::<Mutex<Plan>>::default();
        let commands = UnixListener::bind(path)?;
        let control = UnixListener::bind(format!("{path}.ctrl"))?;
        let (watched, to) = (Arc::clone(&plan), tpm.to_owned());
        serve(commands, move |manager| {
            pass_commands(manager, &to, &watched)
        });
        let to = format!("{tpm}.ctrl");
        serve(control, move |manager| pass_all(manager, &to));
        Ok(Self(plan))
    }

    /// Kills these processes at this step, when it has come by `before` times.
    pub(crate) fn kill_at(&self, step: Step, before: u32, victims: Vec<i32>) {
        *lock(&self.0) = Plan {
            at: Some(step),
            before,
            victims,
            held: None,
        };
    }

    /// The TPM hangs when it is to sign what contains this, until that is let go.
    pub(crate) fn hold_signature_of(&self, part: &[u8]) {
        lock(&self.0).held = Some(part.to_vec());
    }

    /// Lets it go.
    pub(crate) fn let_signatures_go(&self) {
        lock(&self.0).held = None;
    }

    /// Whether it has.
    pub(crate) fn has_killed(&self) -> bool {
        lock(&self.0).at.is_none()
    }
}

impl Plan {
    fn passes(&mut self, step: Step) {
        if self.at != Some(step) {
            return;
        }
        if self.before > 0 {
            self.before -= 1;
            return;
        }
        for victim in self.victims.drain(..) {
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            // Until the kernel has closed what it had open.
            while std::fs::read_dir(format!("/proc/{victim}/fd")).is_ok_and(|fds| fds.count() > 0) {
                thread::yield_now();
            }
        }
        self.at = None;
    }
}

/// Waits for a signature to be let go, or for the manager to go away.
fn hold_back(plan: &Mutex<Plan>, manager: &UnixStream, command: &[u8]) {
    let is_held = || {
        let plan = lock(plan);
        let held = plan.held.as_deref();
        held.is_some_and(|held| command.windows(held.len()).any(|part| part == held))
    };
    while is_held() && is_alive(manager) {
        thread::sleep(Duration::from_millis(5));
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    listener: UnixListener,
    pass: impl Fn(UnixStream) -> io::Result<()> + Clone + Send + 'static,
) {
    thread::spawn(move || {
        for manager in listener.incoming().flatten() {
            let pass = pass.clone();
            thread::spawn(move || pass(manager));
        }
    });
}

fn pass_commands(mut manager: UnixStream, tpm: &str, plan: &Mutex<Plan>) -> io::Result<()> {
    loop {
        let command = next_frame(&mut manager)?;
        if Header::parse(&command).is_some_and(|header| header.code == HASH) {
            hold_back(plan, &manager, &command);
            if !is_alive(&manager) {
                return Ok(());
            }
        }
        let register = written_register(&command);
        if let Some(register) = register {
            lock(plan).passes(Step::BeforeWrite(register));
            if !is_alive(&manager) {
                return Ok(());
            }
        }
        // One connection each: swtpm serves one at a time, and a killed manager leaves its own.
        let mut tpm = UnixStream::connect(tpm)?;
        tpm.write_all(&command)?;
        let response = next_frame(&mut tpm)?;
        if let Some(register) = register {
            lock(plan).passes(Step::AfterWrite(register));
        }
        manager.write_all(&response)?;
    }
}

/// Whether somebody is at the other end, who may have been killed.
fn is_alive(stream: &UnixStream) -> bool {
    let mut end = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    // Who waits for an answer says nothing: what there is to read is the end.
    poll(&mut end, PollTimeout::ZERO).is_ok_and(|ready| ready == 0)
}

fn pass_all(manager: UnixStream, tpm: &str) -> io::Result<()> {
    let tpm = UnixStream::connect(tpm)?;
    let (mut from, mut to) = (manager.try_clone()?, tpm.try_clone()?);
    thread::spawn(move || {
        let copied = io::copy(&mut from, &mut to);
        // swtpm serves one such connection at a time: that of a killed manager must end.
        let _ = to.shutdown(Shutdown::Both);
        copied
    });
    io::copy(&mut &tpm, &mut &manager).map(drop)
}

fn next_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    Ok(read_frame(stream, MAX_SIZE)?.ok_or(io::ErrorKind::UnexpectedEof)?)
}

/// The index that a TPM2_NV_Write writes: its second handle.
fn written_register(command: &[u8]) -> Option<u32> {
    (Header::parse(command)?.code == NV_WRITE)
        .then(|| word(command, 14))
        .flatten()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    word.try_into().ok().map(u32::from_be_bytes)
}
