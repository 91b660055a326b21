//! A process that has loaded everything a backend needs, and of which every backend of a host is
//! a fork: so they share the memory that the loader and the libraries fill at their start, and a
//! vRoT starts without waiting for them.
//!
//! It never sees a key, a state or a guest. Of the rights of its manager it keeps the one to give
//! each backend a user of its own. It ends with its manager; the backends go on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::exit;

use anyhow::{Context, Result};
use backend_link::admission::VmmAdmission;
use backend_link::frame::{FrameError, receive, send};
use backend_link::transport::Transport;
use backend_link::zygote::{FromZygote, ToZygote};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, fork, setsid};
use program_output::console::complain;
use program_output::log;

use crate::engine::{Engine, Libtpms};
use crate::privileges::{become_user, keep_changing_users};
use crate::sandbox::{self, Files};

/// A backend that has just been forked.
#[derive(Debug)]
pub struct Spawn {
    /// The folder for its sockets.
    pub runtime: PathBuf,
    /// What it locks for its life, if anything.
    pub lock: Option<PathBuf>,
    /// Whose VMMs it lets in.
    pub admission: VmmAdmission,
    /// The user that it becomes; absent if it is to stay the manager's.
    pub uid: Option<u32>,
    /// How its VM reaches it.
    pub transport: Transport,
}

/// What a forked process runs, to its end.
pub type Service = fn(&Spawn) -> Result<()>;

impl Spawn {
    /// Confines the new backend for the rest of its life, with its sockets in place: they are its
    /// manager's files, which it cannot reach any more itself. Nor does it keep its manager's
    /// standard error, where it could write what it likes: its log goes over its connection.
    pub fn confine(&self, threads: impl FnOnce() -> io::Result<()>) -> Result<()> {
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        become_user(self.uid)?;
        let mut shared = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        dup2_stderr(null)?;
        sandbox::enter(Files::None, self.transport, threads).inspect_err(|error| {
            let _ = writeln!(shared, "vtpm-backend: {error}");
        })?;
        Ok(())
    }
}

/// Serves the manager at standard input, until it is gone. `backend` is what a fork does; it
/// does not come back.
pub fn run(backend: Service) -> Result<()> {
    close_inherited()?;
    keep_changing_users()?;
    warm_up()?;
    let mut manager = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut stderr = log::Stderr::at_once().context("there is no standard error to log to")?;
    loop {
        log::pass_on(&mut |line| stderr.write(line));
        let (asked, ended) = wait(&manager, &signals)?;
        if ended {
            while signals.read_signal()?.is_some() {}
            report_ends(&mut manager)?;
        }
        if !asked {
            continue;
        }
        let ToZygote::Spawn {
            runtime,
            lock,
            admission,
            uid,
            transport,
        } = match receive(&mut manager) {
            Err(FrameError::Io(error)) if is_end(&error) => return Ok(()),
            other => other?,
        };
        let answer = match spawn(&children)? {
            Some(process) => process,
            None => {
                drop((manager, signals, stderr));
                log::forget();
                let spawn = Spawn {
                    runtime: runtime.into(),
                    lock: lock.map(PathBuf::from),
                    admission,
                    uid,
                    transport,
                };
                child_main(&spawn, backend)
            }
        };
        send(&mut manager, &answer)?;
    }
}

/// The manager may have inherited open descriptors, and no backend needs them.
#[expect(
    unsafe_code,
    reason = "no library closes descriptors that have no owner here"
)]
fn close_inherited() -> Result<(), nix::errno::Errno> {
    // SAFETY: nothing in this process owns a descriptor beyond standard error yet.
    let closed = unsafe { nix::libc::close_range(3, nix::libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(closed).map(drop)
}

/// Has the libraries do what they do once in a process, on a TPM that is thrown away.
fn warm_up() -> Result<()> {
    let mut engine = Libtpms::new()?;
    engine.power_on()?;
    engine.power_off();
    Ok(())
}

fn wait(manager: &UnixStream, signals: &SignalFd) -> Result<(bool, bool)> {
    let mut sources =
        [manager.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut sources, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [asked, ended] = sources.map(|source| source.revents().is_some_and(|e| !e.is_empty()));
    Ok((asked, ended))
}

/// In the zygote: what is to be answered. In the new process: nothing.
#[expect(unsafe_code, reason = "a fork is what this is for")]
fn spawn(children: &SigSet) -> Result<Option<FromZygote>> {
    // SAFETY: this process has one thread, so that nothing is left half done in the new one.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Some(FromZygote::Spawned {
            process: child.as_raw(),
        })),
        Ok(ForkResult::Child) => {
            children.thread_unblock()?;
            Ok(None)
        }
        Err(error) => Ok(Some(FromZygote::NotSpawned {
            reason: error.to_string(),
        })),
    }
}

/// Runs a backend in a new process, and ends that.
fn child_main(spawn: &Spawn, backend: Service) -> ! {
    let lived = detach_from_manager(&spawn.runtime).and_then(|()| backend(spawn));
    if let Err(error) = lived {
        complain(format_args!("vtpm-backend: {error:#}"));
        exit(1)
    }
    exit(0)
}

/// No signal meant for the manager reaches it, nor does it hold the manager's connection. Its
/// folder says which vRoT it is, to whoever looks at the processes of the host.
fn detach_from_manager(runtime: &Path) -> Result<()> {
    setsid()?;
    dup2_stdin(File::open("/dev/null")?)?;
    chdir(runtime).with_context(|| format!("{} is not there", runtime.display()))?;
    let name = runtime.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(8).collect();
    prctl::set_name(&std::ffi::CString::new(format!("vrot-{name}"))?)?;
    Ok(())
}

fn report_ends(manager: &mut UnixStream) -> Result<()> {
    loop {
        let (process, status): (Pid, String) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(process, 0)) => (process, "it ended".to_owned()),
            Ok(WaitStatus::Exited(process, code)) => (process, format!("exit status: {code}")),
            Ok(WaitStatus::Signaled(process, signal, _)) => {
                (process, format!("signal: {}", signal.as_str()))
            }
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let process = process.as_raw();
        send(manager, &FromZygote::Ended { process, status })?;
    }
}

fn is_end(error: &io::Error) -> bool {
    [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset].contains(&error.kind())
}
