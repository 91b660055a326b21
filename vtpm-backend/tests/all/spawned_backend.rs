//! A backend as a manager gets it, a fork of a zygote: what the kernel says that it may do, and
//! what it could do to a neighbour if a guest had taken it over.
//!
//! What is tried from inside is tried by a fork of this test's own program, which is a zygote,
//! too: it is confined by the same call as a backend, and then tries one thing.

use std::env;
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Uid, setuid};
use vtpm_backend::privileges::{become_user, give_up_capabilities};
use vtpm_backend::zygote::{Spawn, run};

use crate::support::command;
use crate::support::zygote::{Backend, Zygote, own_user};

const ATTEMPT: &str = "VROT_SPAWNED_ATTEMPT";
const CONFINEMENT: &str = "VROT_SPAWNED_CONFINEMENT";
const TARGET: &str = "VROT_SPAWNED_TARGET";
const PATIENCE: Duration = Duration::from_secs(60);
const DENIED: i32 = 10;
const ALLOWED: i32 = 11;
/// With user and capabilities taken away, and nothing else.
const USER_ALONE: &str = "user alone";

/// Not a test of its own: does nothing unless [`attempt`] runs it.
#[test]
fn probe() -> Result<()> {
    match env::var(ATTEMPT) {
        Ok(_) => run(try_from_inside),
        Err(_) => Ok(()),
    }
}

fn try_from_inside(spawn: &Spawn) -> Result<()> {
    if env::var(CONFINEMENT)? == USER_ALONE {
        become_user(spawn.uid)?;
        give_up_capabilities()?;
    } else {
        spawn.confine(|| Ok(()))?;
    }
    let target = Pid::from_raw(env::var(TARGET)?.parse()?);
    let outcome = match env::var(ATTEMPT)?.as_str() {
        "kill" => kill(target, Signal::SIGKILL).map_err(io::Error::from),
        "trace" => ptrace::attach(target).map_err(io::Error::from),
        "read memory" => read_memory(target),
        "become root" => setuid(Uid::from_raw(0)).map_err(io::Error::from),
        "read the memory file" => fs::read(format!("/proc/{target}/mem")).map(drop),
        other => bail!("no attempt: {other}"),
    };
    std::process::exit(match outcome {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => DENIED,
        _ => ALLOWED,
    })
}

#[test]
fn a_spawned_backend_has_no_right_that_it_does_not_need() -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    let backend = zygote.spawn()?;
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Groups", ""),
    ] {
        assert_eq!(status(backend.process, field)?, expected, "{field}");
    }
    Ok(())
}

#[test]
fn every_spawned_backend_is_a_user_of_its_own() -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    let (one, two) = (zygote.spawn()?, zygote.spawn()?);
    ensure!(one.uid != two.uid);
    for backend in [&one, &two] {
        let uid = backend.uid.context("a user")?;
        // Real, effective, saved, and that of file accesses.
        let expected = [uid; 4].map(|uid| uid.to_string()).join("\t");
        assert_eq!(status(backend.process, "Uid")?, expected);
        assert_eq!(status(backend.process, "Gid")?, expected);
    }
    Ok(())
}

#[test]
fn no_backend_is_spawned_as_root_or_as_its_manager() -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    for uid in [None, Some(0)] {
        let folder = tempfile::tempdir()?;
        let process = zygote.spawn_in(folder.path(), uid)?;
        assert_eq!(zygote.end_of(process)?, "exit status: 1", "{uid:?}");
    }
    Ok(())
}

#[test]
fn a_zygote_keeps_nothing_but_the_right_to_change_users() -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    let _started = zygote.spawn()?;
    let process = i32::try_from(zygote.process.id())?;
    // CAP_SETGID (6) and CAP_SETUID (7) of <linux/capability.h>
    for (field, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000000000c0"),
        ("CapEff", "00000000000000c0"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status(process, field)?, expected, "{field}");
    }
    Ok(())
}

#[test]
fn a_spawned_backend_is_not_dumpable_and_its_memory_is_roots() -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    let backend = zygote.spawn()?;
    // proc(5): files of a process that is not dumpable are root's, not its user's.
    for name in ["mem", "maps", "environ"] {
        let file = format!("/proc/{}/{name}", backend.process);
        assert_eq!(fs::metadata(&file)?.uid(), 0, "{file}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", backend.process))?;
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let core: Vec<&str> = core.context("a limit")?.split_whitespace().collect();
    ensure!(core.get(4..6) == Some(&["0", "0"][..]), "{core:?}");
    Ok(())
}

#[test]
fn other_processes_of_its_user_cannot_look_into_a_backend_that_shares_its_managers() -> Result<()> {
    require_root()?;
    let user = own_user().context("a user")?;
    let folder = tempfile::tempdir()?;
    chown(folder.path(), Some(user), Some(user))?;
    let mut zygote = Zygote::of(
        Command::new(env!("CARGO_BIN_EXE_vtpm-backend"))
            .arg("--zygote")
            .uid(user)
            .gid(user)
            // Which it opens anew.
            .stderr(Stdio::null()),
    )?;
    let process = zygote.spawn_in(folder.path(), None)?;
    let looked = once_it_is_confined(process).and_then(|()| {
        let mut look = Command::new("cat");
        look.arg(format!("/proc/{process}/environ"));
        Ok(look.uid(user).gid(user).output()?)
    });
    kill(Pid::from_raw(process), Signal::SIGKILL)?;
    let looked = looked?;
    let said = String::from_utf8_lossy(&looked.stderr);
    ensure!(
        said.contains("Permission denied"),
        "{}: {said}",
        looked.status
    );
    Ok(())
}

/// Its filter of system calls is the last that it gets.
fn once_it_is_confined(process: i32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while status(process, "Seccomp")? != "2" {
        ensure!(Instant::now() < deadline, "it is not confined");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn a_spawned_backend_holds_nothing_open_but_its_sockets() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let _older = zygote.spawn()?;
    let backend = zygote.spawn()?;
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", backend.process))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        let what = fs::read_link(entry.path())?.display().to_string();
        if number > 2 {
            // Signals that end it arrive at a descriptor.
            if what == "anon_inode:[signalfd]" {
                continue;
            }
            let kind = what.split(':').next().unwrap_or_default();
            ensure!(kind == "socket", "{number} is {what}");
            open.push(number);
        } else {
            // Not even its manager's log, where it could write what it likes.
            assert_eq!(what, "/dev/null", "{number}");
        }
    }
    // Those where VMM and manager dial in, the manager's connection, and the pair over which its
    // threads talk.
    assert_eq!(open.len(), 5, "{open:?}");
    Ok(())
}

#[test]
fn a_spawned_backend_cannot_reach_into_a_neighbour() -> Result<()> {
    a_neighbour_is_out_of_reach_with("sandbox")
}

#[test]
fn its_user_alone_keeps_a_backend_from_its_neighbours() -> Result<()> {
    a_neighbour_is_out_of_reach_with(USER_ALONE)
}

fn a_neighbour_is_out_of_reach_with(confinement: &str) -> Result<()> {
    require_root()?;
    let mut zygote = Zygote::start()?;
    let neighbour = zygote.spawn()?;
    for what in [
        "kill",
        "trace",
        "read memory",
        "read the memory file",
        "become root",
    ] {
        attempt(what, confinement, &neighbour)?;
    }
    neighbour.execute(&command(0x17b, &[0, 8]))?;
    Ok(())
}

/// Has a fork of a zygote, confined like a backend, try something: it must be denied.
fn attempt(what: &str, confinement: &str, neighbour: &Backend) -> Result<()> {
    // The test runner has a thread of its own, which must not take the signal from the zygote:
    // whoever is started has it blocked as we have.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let mut zygote = Zygote::of(
        Command::new(env::current_exe()?)
            // On one thread, which is the one that forks.
            .args([
                "--exact",
                "spawned_backend::probe",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ATTEMPT, what)
            .env(CONFINEMENT, confinement)
            .env(TARGET, neighbour.process.to_string()),
    )?;
    let folder = tempfile::tempdir()?;
    let process = zygote.spawn_in(folder.path(), own_user())?;
    let status = zygote.end_of(process)?;
    ensure!(
        status == format!("exit status: {DENIED}"),
        "with {confinement}, `{what}`: {status} ({ALLOWED} is: allowed)"
    );
    Ok(())
}

fn read_memory(target: Pid) -> io::Result<()> {
    // Where it is mapped does not matter: it is refused before anybody looks.
    let from = RemoteIoVec {
        base: 0x1_0000,
        len: 1,
    };
    let mut byte = [0];
    process_vm_readv(target, &mut [IoSliceMut::new(&mut byte)], &[from])?;
    Ok(())
}

fn status(process: i32, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let prefix = format!("{field}:");
    let line = status.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(line.context("a line")?.trim().to_owned())
}

fn require_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    Ok(())
}
