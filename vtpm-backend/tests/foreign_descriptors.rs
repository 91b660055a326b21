//! What a VMM hands over stays in its hands, too: whatever it does with it there, its backend waits
//! for nobody longer than it says.
//!
//! A program of its own: a connection whose close waits for an hour must not be in the hands of
//! a process that another test is about to start.

#[expect(dead_code, reason = "these tests use a part of it")]
mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use nix::unistd::Pid;
use support::managed::{Backend, status};
use support::{INIT, SET_DATAFD, STARTUP, command, words};
use test_support::descriptors::{self, lingering};
use vtpm_backend::sockets::WRITE_DEADLINE;

/// On a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(20);
/// `SO_PASSPIDFD`, `SO_PASSCRED`, `SO_PASSSEC`
const PASS: [i32; 3] = [76, 16, 34];

#[test]
fn a_vmm_that_makes_its_data_channel_block_keeps_nobody_waiting() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(5, None)?;
    let mut vmm = backend.vmm()?;
    let (mut data, theirs) = UnixStream::pair()?;
    setsockopt(&theirs, SndBuf, &4096)?;
    hand_over(&vmm.control, &theirs)?;
    assert_eq!(vmm.answer(4)?, [0; 4]);
    // The flags are of the socket, not of a descriptor: the backend's is the same one.
    let blocking = || fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()));
    blocking()?;
    data.write_all(&STARTUP)?;
    ensure!(data.read(&mut [0; 64])? == 10);
    blocking()?;
    data.set_nonblocking(true)?;
    // Long answers, and nobody reads them.
    let question = command(0x17a, &words(&[2, 0, 254])).repeat(20);
    while data.write_all(&question).is_ok() {}
    drop(theirs);
    let began = Instant::now();
    // Until it is given up, so that nothing can be sent to it any more.
    while data.write(&STARTUP).map_err(|error| error.kind()) != Err(ErrorKind::BrokenPipe) {
        status(&mut manager)?;
        ensure!(
            began.elapsed() < WRITE_DEADLINE + SLACK,
            "the manager waits"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Its VMM can bring another one.
    assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
    Ok(())
}

#[test]
fn only_a_connected_stream_of_the_unix_domain_carries_commands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start()?;
    let _manager = backend.opened(5, None)?;
    let mut vmm = backend.vmm()?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let refused: [(&str, OwnedFd); 7] = [
        ("TCP", TcpStream::connect(tcp.local_addr()?)?.into()),
        ("listening TCP", tcp.into()),
        ("datagrams", UnixDatagram::unbound()?.into()),
        (
            "listening",
            UnixListener::bind(folder.path().join("l"))?.into(),
        ),
        ("a file", File::create(folder.path().join("f"))?.into()),
        ("a device", File::open("/dev/null")?.into()),
        ("a pipe", std::io::pipe()?.0.into()),
    ];
    for (what, descriptor) in refused {
        hand_over(&vmm.control, &descriptor)?;
        assert_eq!(vmm.answer(4)?, [0, 0, 0, 3], "{what}");
        // What was there goes on.
        vmm.execute(&command(0x17b, &[0, 8]))
            .with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_descriptor_whose_close_lingers_keeps_nobody_waiting() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(5, None)?;
    let began = Instant::now();
    for way in ["data", "unwanted", "in the data channel", "never read"] {
        let mut vmm = backend.vmm()?;
        let (lingering, _peer) = lingering()?;
        // So that it is the backend that has it last.
        let process = Pid::from_raw(backend.process.id().try_into()?);
        kill(process, Signal::SIGSTOP)?;
        match way {
            "data" => hand_over(&vmm.control, &lingering)?,
            "unwanted" => send_along(&vmm.control, &words(&[INIT, 0]), &lingering)?,
            "in the data channel" => send_along(&vmm.data, &STARTUP, &lingering)?,
            _ => {
                // On a socket that goes with the connection, unread.
                let (near, far) = UnixStream::pair()?;
                send_along(&near, &[0], &lingering)?;
                drop(near);
                hand_over(&vmm.control, &far)?;
            }
        }
        drop(lingering);
        kill(process, Signal::SIGCONT)?;
        match way {
            "data" => assert_eq!(vmm.answer(4)?, [0, 0, 0, 3]),
            "in the data channel" => vmm.data.read_exact(&mut [0; 10])?,
            _ => assert_eq!(vmm.answer(4)?, [0; 4]),
        }
        drop(vmm);
        status(&mut manager)?;
        ensure!(began.elapsed() < SLACK, "{way}: the manager waits");
        let mut next = backend.vmm()?;
        next.execute(&command(0x17b, &[0, 8]))?;
        ensure!(began.elapsed() < SLACK, "{way}: the next VMM waits");
    }
    Ok(())
}

#[test]
fn processes_that_come_along_with_bytes_fill_no_table_of_descriptors() -> Result<()> {
    let backend = Backend::start()?;
    let mut manager = backend.opened(5, None)?;
    let mut vmm = backend.vmm()?;
    let (data, theirs) = UnixStream::pair()?;
    hand_over(&vmm.control, &theirs)?;
    assert_eq!(vmm.answer(4)?, [0; 4]);
    vmm.data = data;
    for option in PASS {
        set_option(&theirs, option);
    }
    let open = || -> Result<usize> {
        let folder = format!("/proc/{}/fd", backend.process.id());
        Ok(std::fs::read_dir(folder)?.count())
    };
    vmm.execute(&STARTUP)?;
    let before = open()?;
    for _ in 0..50 {
        vmm.execute(&command(0x17b, &[0, 8]))?;
    }
    // What is to be closed, as the first data channel before, is closed beside the answers.
    let began = Instant::now();
    while open()? > before {
        ensure!(began.elapsed() < SLACK, "{} are open", open()?);
        std::thread::sleep(Duration::from_millis(5));
    }
    status(&mut manager)?;
    Ok(())
}

fn hand_over(control: &UnixStream, descriptor: &impl AsFd) -> Result<()> {
    send_along(control, &SET_DATAFD.to_be_bytes(), descriptor)
}

fn send_along(stream: &UnixStream, bytes: &[u8], descriptor: &impl AsFd) -> Result<()> {
    descriptors::send_along(stream.as_fd(), bytes, &[descriptor.as_fd().as_raw_fd()])
}

/// Kernels that do not know the option do nothing of the kind.
#[expect(unsafe_code, reason = "no library knows the newest of these options")]
fn set_option(stream: &UnixStream, option: i32) {
    let on = 1u32;
    // SAFETY: the value is a live number of the stated length.
    let _ = unsafe {
        nix::libc::setsockopt(
            stream.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&on).cast(),
            4,
        )
    };
}
