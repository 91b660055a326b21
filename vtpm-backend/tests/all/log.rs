//! The log of a backend: whoever reads it, or does not, its guest is served.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, ToBackend};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::support::managed::Backend;
use crate::support::{Emulator, STARTUP, Vmm};

const SECOND_VMM: &str = "a second VMM was turned away";

/// Others want to attach beside the one that is here: each time there is something to say.
fn knock(times: usize, mut connect: impl FnMut() -> Result<UnixStream>) -> Result<()> {
    for _ in 0..times {
        let _ = connect()?.read(&mut [0]);
    }
    Ok(())
}

/// How many lines a log says that it left out.
fn left_out(log: &str) -> usize {
    let numbers = log.split(" left_out=").skip(1);
    let numbers = numbers.filter_map(|rest| rest.split_whitespace().next()?.parse::<usize>().ok());
    numbers.sum()
}

fn starts(vmm: &mut Vmm) -> Result<()> {
    let response = vmm.execute(&STARTUP)?;
    ensure!(response.ends_with(&[0; 4]), "{response:?}");
    Ok(())
}

/// A pipe without room.
fn full_pipe() -> Result<(File, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut file = File::from(writer.try_clone()?);
    while file.write(&[b'\n'; 4096]).is_ok() {}
    while file.write(b"\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader.into(), writer))
}

#[test]
fn a_reader_that_stalls_holds_no_guest_up_and_hears_later_what_there_was_room_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut reader, writer) = full_pipe()?;
    let kept = writer.try_clone()?;
    let mut emulator = Emulator::ours_logging_to(folder.path(), writer.into())?;
    let mut vmm = emulator.attach_and_init()?;
    knock(500, || emulator.connect())?;
    starts(&mut vmm)?;
    // Whoever shares the pipe finds it as it was.
    let flags = OFlag::from_bits_truncate(fcntl(&kept, FcntlArg::F_GETFL)?);
    assert!(!flags.contains(OFlag::O_NONBLOCK));
    let mut said = String::new();
    let mut chunk = [0; 4096];
    let deadline = Instant::now() + Duration::from_secs(60);
    // The backend says by itself how many are missing, although nobody asks it anything.
    while said.matches(SECOND_VMM).count() + left_out(&said) < 500 {
        ensure!(Instant::now() < deadline, "it does not tell: {said}");
        let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(100u8))? == 0 {
            continue;
        }
        let read = reader.read(&mut chunk)?;
        said.push_str(&String::from_utf8_lossy(
            chunk.get(..read).unwrap_or_default(),
        ));
    }
    ensure!(said.matches(SECOND_VMM).count() < 100, "{said}");
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_or_that_a_full_disk_does_not_take_holds_no_guest_up() -> Result<()> {
    let unread: Stdio = pipe2(OFlag::O_CLOEXEC)?.1.into();
    let full: Stdio = File::options().write(true).open("/dev/full")?.into();
    let socket: Stdio = OwnedFd::from(UnixStream::pair()?.0).into();
    for log in [unread, full, socket] {
        let folder = tempfile::tempdir()?;
        let mut emulator = Emulator::ours_logging_to(folder.path(), log)?;
        let mut vmm = emulator.attach_and_init()?;
        knock(50, || emulator.connect())?;
        starts(&mut vmm)?;
        ensure!(emulator.is_alive()?);
    }
    Ok(())
}

#[test]
fn a_managed_backend_tells_its_manager_a_few_lines_of_a_kind_and_how_many_it_left_out() -> Result<()>
{
    let backend = Backend::start()?;
    let mut manager = backend.opened(50, None)?;
    let _vmm = backend.vmm()?;
    let control = backend.folder.path().join("control.sock");
    knock(500, || {
        let stranger = UnixStream::connect(&control)?;
        stranger.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stranger)
    })?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut said = String::new();
    while said.matches(SECOND_VMM).count() + left_out(&said) < 500 {
        ensure!(Instant::now() < deadline, "it does not tell: {said}");
        send(&mut manager, &ToBackend::Hello)?;
        if let FromBackend::Log { says, .. } = receive(&mut manager)? {
            ensure!(!says.contains('\n'), "{says:?}");
            said.push_str(&says);
            said.push('\n');
        }
    }
    ensure!(said.matches(SECOND_VMM).count() < 100, "{said}");
    Ok(())
}
