//! A zygote as a manager sees it, and the backends that it spawns.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use backend_link::StateKey;
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, Open, ToBackend};
use backend_link::transport::Transport;
use backend_link::zygote::{FromZygote, ToZygote};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// Users that only these tests have: a hundred for each process.
const FIRST_USER: u32 = 2_000_100_000;
const USERS: u32 = 100;

/// A user that no other backend has; `None` where there is no right to change users.
pub(crate) fn own_user() -> Option<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let at = NEXT.fetch_add(1, Ordering::Relaxed);
    let own = std::process::id() % 100_000 * USERS + at % USERS;
    nix::unistd::geteuid().is_root().then_some(FIRST_USER + own)
}

pub(crate) struct Zygote {
    pub(crate) process: Child,
    pub(crate) manager: UnixStream,
}

/// A backend with key and state; it ends with the test.
pub(crate) struct Backend {
    pub(crate) process: i32,
    pub(crate) uid: Option<u32>,
    manager: UnixStream,
    _folder: TempDir,
}

impl Zygote {
    /// Of the program itself.
    pub(crate) fn start() -> Result<Self> {
        Self::of(Command::new(env!("CARGO_BIN_EXE_vtpm-backend")).arg("--zygote"))
    }

    /// Of another program that is one.
    pub(crate) fn of(command: &mut Command) -> Result<Self> {
        let (manager, theirs) = UnixStream::pair()?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let process = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { process, manager })
    }

    /// A process in this folder, as this user.
    pub(crate) fn spawn_in(&mut self, folder: &Path, uid: Option<u32>) -> Result<i32> {
        let runtime = folder.display().to_string();
        send(
            &mut self.manager,
            &ToZygote::Spawn {
                runtime,
                lock: None,
                admission: backend_link::admission::VmmAdmission::default(),
                uid,
                transport: Transport::Emulator,
            },
        )?;
        match receive(&mut self.manager)? {
            FromZygote::Spawned { process } => Ok(process),
            other => bail!("{other:?}"),
        }
    }

    /// How a process that was spawned here ended.
    pub(crate) fn end_of(&mut self, spawned: i32) -> Result<String> {
        loop {
            match receive(&mut self.manager)? {
                FromZygote::Ended { process, status } if process == spawned => return Ok(status),
                FromZygote::Ended { .. } => {}
                other => bail!("{other:?}"),
            }
        }
    }

    /// A backend with some key.
    pub(crate) fn spawn(&mut self) -> Result<Backend> {
        self.spawn_with([9; 32])
    }

    /// A backend with this key.
    pub(crate) fn spawn_with(&mut self, key: [u8; 32]) -> Result<Backend> {
        let folder = tempfile::tempdir()?;
        let uid = own_user();
        let process = self.spawn_in(folder.path(), uid)?;
        let socket = folder.path().join("manager.sock");
        let deadline = Instant::now() + PATIENCE;
        let mut manager = loop {
            match UnixStream::connect(&socket) {
                Ok(manager) => break manager,
                Err(error) => ensure!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(2));
        };
        manager.set_read_timeout(Some(PATIENCE))?;
        let open = Open {
            vrot: [7; 16].into(),
            generation: 1,
            key: StateKey::copied(&key)?,
            permanent: None,
            durability_deadline_ms: 1,
            volatile: None,
            is_copy: false,
            answer_within_ms: None,
        };
        send(&mut manager, &ToBackend::Open(open))?;
        ensure!(matches!(receive(&mut manager)?, FromBackend::Opened));
        Ok(Backend {
            process,
            uid,
            manager,
            _folder: folder,
        })
    }
}

impl Backend {
    /// Has the manager's connection carry out a command.
    pub(crate) fn execute(&self, command: &[u8]) -> Result<Vec<u8>> {
        let mut manager = self.manager.try_clone()?;
        let command = command.to_vec().into();
        send(&mut manager, &ToBackend::Execute { id: 1, command })?;
        loop {
            match receive(&mut manager).context("the backend has ended")? {
                FromBackend::Executed { response, .. } => return Ok(response.into()),
                FromBackend::StateChanged { sequence, .. } => {
                    send(&mut manager, &ToBackend::Persisted { sequence })?;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process), Signal::SIGKILL);
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
