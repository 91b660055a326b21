//! What a backend could do if a guest had taken it over: each attempt is made from inside.
//!
//! The probe is this test's own program, run once more: it confines itself as a backend does and
//! then tries one thing.

use std::env;
use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use backend_link::transport::Transport;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::fstatfs;
use rustix::io::{ReadWriteFlags, ioctl_fionread, preadv2};
use vtpm_backend::sandbox::{Files, enter};

use crate::support::Emulator;

/// `FIOSETOWN` of <asm-generic/sockios.h>
const FIOSETOWN: u64 = 0x8901;
const ATTEMPT: &str = "VROT_SANDBOX_ATTEMPT";
/// Is there if the probe is a backend whose VMM shares its guest's memory.
const TRANSPORT: &str = "VROT_SANDBOX_SHARED_MEMORY";
const TARGET: &str = "VROT_SANDBOX_TARGET";
/// How a probe ends that was denied, that was not, and that could not even confine itself.
const DENIED: i32 = 10;
const ALLOWED: i32 = 11;
const NOT_CONFINED: i32 = 12;

/// Not a test of its own: does nothing unless [`attempt`] runs it.
#[test]
fn probe() {
    let (Ok(attempt), Ok(target)) = (env::var(ATTEMPT), env::var(TARGET)) else {
        return;
    };
    let transport = match env::var(TRANSPORT).is_ok() {
        true => Transport::VirtioTpm,
        false => Transport::Emulator,
    };
    if enter(Files::None, transport, || Ok(())).is_err() {
        std::process::exit(NOT_CONFINED);
    }
    let outcome = match attempt.as_str() {
        "read" => fs::read(&target).map(drop),
        "write" => fs::write(&target, "x"),
        "remove" => fs::remove_file(&target),
        "connect" => UnixStream::connect(&target).map(drop),
        "connect over TCP" => TcpStream::connect(&target).map(drop),
        "listen" => UnixListener::bind(&target).map(drop),
        "execute" => Command::new(&target).status().map(drop),
        "trace" => process(&target).and_then(|process| Ok(ptrace::attach(process)?)),
        "have a signal sent" => process(&target).and_then(have_signal_sent),
        "have input announced" => fcntl(io::stdin(), FcntlArg::F_SETFL(OFlag::O_ASYNC))
            .map(drop)
            .map_err(Into::into),
        "start a thread" => thread::Builder::new().spawn(|| ()).map(drop),
        "make an epoll" => epoll::create(epoll::CreateFlags::CLOEXEC)
            .map(drop)
            .map_err(Into::into),
        "make an eventfd" => eventfd(0, EventfdFlags::CLOEXEC)
            .map(drop)
            .map_err(Into::into),
        "ask what a file lies on" => fstatfs(io::stdin()).map(drop).map_err(Into::into),
        "ask how much waits" => ioctl_fionread(io::stdin()).map(drop).map_err(Into::into),
        "read without waiting" => {
            let mut buffer = [0];
            let flags = ReadWriteFlags::NOWAIT;
            let read = preadv2(io::stdin(), &mut [IoSliceMut::new(&mut buffer)], 0, flags);
            read.map(drop).map_err(Into::into)
        }
        "kill" => process(&target).and_then(|process| Ok(kill(process, Signal::SIGKILL)?)),
        _ => std::process::exit(NOT_CONFINED),
    };
    std::process::exit(match outcome {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => DENIED,
        _ => ALLOWED,
    });
}

#[test]
fn files_are_out_of_reach() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let key = folder.path().join("another vRoT's key");
    fs::write(&key, "secret")?;
    for what in ["read", "write", "remove"] {
        assert_denied(what, &key.display().to_string())?;
    }
    assert_eq!(fs::read(&key)?, b"secret");
    Ok(())
}

#[test]
fn nobody_can_be_connected_to_and_nothing_served() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // The manager's API, say.
    let api = folder.path().join("api.sock");
    let _listener = UnixListener::bind(&api)?;
    assert_denied("connect", &api.display().to_string())?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    assert_denied("connect over TCP", &tcp.local_addr()?.to_string())?;
    let own = folder.path().join("own.sock");
    assert_denied("listen", &own.display().to_string())
}

#[test]
fn no_program_can_be_started() -> Result<()> {
    assert_denied("execute", "/bin/true")
}

#[test]
fn a_neighbour_cannot_be_traced_or_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut neighbour = Emulator::ours(folder.path())?;
    neighbour.connect()?;
    for what in [
        "trace",
        "kill",
        "have a signal sent",
        "have input announced",
    ] {
        assert_denied(what, &neighbour.id().to_string())?;
    }
    ensure!(neighbour.is_alive()?);
    Ok(())
}

#[test]
fn a_running_backend_is_confined_and_leaves_no_core_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut backend = Emulator::ours(folder.path())?;
    // It answers only once it is confined.
    backend.attach_and_init()?;
    let status = fs::read_to_string(format!("/proc/{}/status", backend.id()))?;
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(
            status.lines().any(|other| other == line),
            "{line}: {status}"
        );
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", backend.id()))?;
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.context("a limit")?.split_whitespace().collect();
    ensure!(core.get(4..6) == Some(&["0", "0"][..]), "{core:?}");
    Ok(())
}

/// Three calls are for a backend whose VMM shares its guest's memory, and no thread, epoll or eventfd
/// is for either.
#[test]
fn what_it_takes_to_share_memory_is_denied_to_who_does_not() -> Result<()> {
    for what in ["start a thread", "make an epoll", "make an eventfd"] {
        assert_denied(what, "")?;
    }
    for what in [
        "ask what a file lies on",
        "ask how much waits",
        "read without waiting",
    ] {
        ensure!(outcome(what, "", Transport::Emulator)? == DENIED, "{what}");
        ensure!(
            outcome(what, "", Transport::VirtioTpm)? == ALLOWED,
            "{what}"
        );
    }
    Ok(())
}

fn assert_denied(attempt: &str, target: &str) -> Result<()> {
    for transport in [Transport::Emulator, Transport::VirtioTpm] {
        match outcome(attempt, target, transport)? {
            DENIED => {}
            _ => bail!("a process that is confined for {transport:?} may {attempt} {target}"),
        }
    }
    Ok(())
}

fn outcome(attempt: &str, target: &str, transport: Transport) -> Result<i32> {
    let mut command = Command::new(env::current_exe()?);
    if transport.is_vhost_user() {
        command.env(TRANSPORT, "");
    }
    let status = command
        .args([
            "--exact",
            "sandbox::probe",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ATTEMPT, attempt)
        .env(TARGET, target)
        .current_dir(Path::new("/"))
        .output()?;
    match status.status.code() {
        Some(code @ (DENIED | ALLOWED)) => Ok(code),
        other => bail!(
            "the probe for `{attempt}` ended with {other:?}: {}",
            String::from_utf8_lossy(&status.stderr)
        ),
    }
}

/// Has a descriptor announce its input to another process, by a signal: both ways to name it.
#[expect(unsafe_code, reason = "no library knows these calls")]
fn have_signal_sent(process: Pid) -> std::io::Result<()> {
    use nix::libc;
    let number = process.as_raw();
    // SAFETY: the first takes numbers alone, the second a pointer to one that lives on.
    let (owner, other_way) = unsafe {
        (
            libc::fcntl(0, libc::F_SETOWN, number),
            libc::ioctl(0, FIOSETOWN, &raw const number),
        )
    };
    if owner == 0 || other_way == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error())
}

fn process(target: &str) -> std::io::Result<Pid> {
    let number = target.parse().map_err(|_| ErrorKind::InvalidInput)?;
    Ok(Pid::from_raw(number))
}
