//! What the programs print: to a reader that has gone away, to a disk that is full, and to one that
//! does not read.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use test_support::deadline::wait_for;
use test_support::programs::program;

const PROGRAMS: [&str; 7] = [
    "vtpm-managerd",
    "vtpmctl",
    "vtpm-backend",
    "vrot-service",
    "vrot-confirm",
    "vrot-device",
    "vrot-tenant",
];

/// A pipe that nobody reads.
fn unread() -> Result<OwnedFd> {
    Ok(pipe2(OFlag::O_CLOEXEC)?.1)
}

/// The same, with a reader that does not read, and without room.
fn stalled() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut file = File::from(writer.try_clone()?);
    while file.write(&[b'\n'; 4096]).is_ok() {}
    while file.write(b"\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}

fn full() -> Result<File> {
    Ok(File::options().write(true).open("/dev/full")?)
}

/// How a program ends, by its exit status.
fn status(command: &mut Command) -> Result<i32> {
    let ended = command.stdin(Stdio::null()).status()?;
    ended
        .code()
        .with_context(|| format!("{command:?}: {ended}"))
}

#[test]
fn who_reads_only_the_beginning_has_read_what_was_wanted() -> Result<()> {
    for name in PROGRAMS {
        for asked in ["--help", "--version"] {
            let mut command = Command::new(program(name)?);
            let ended = status(command.arg(asked).stdout(unread()?))?;
            assert_eq!(ended, 0, "{name} {asked}");
        }
    }
    Ok(())
}

#[test]
fn a_result_that_cannot_be_written_is_an_error_that_says_so() -> Result<()> {
    for name in PROGRAMS {
        let mut command = Command::new(program(name)?);
        let output = command.arg("--help").stdout(full()?).output()?;
        assert_eq!(output.status.code(), Some(1), "{name}");
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            said.contains("standard output cannot be written"),
            "{name}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_complaint_that_cannot_be_written_changes_no_exit_status() -> Result<()> {
    let wrong: [(&str, &[&str], i32); 8] = [
        ("vtpm-managerd", &["--wrong"], 2),
        ("vtpmctl", &["wrong"], 2),
        ("vtpm-backend", &["--wrong"], 2),
        ("vrot-service", &["wrong"], 2),
        ("vrot-device", &["wrong"], 2),
        ("vtpm-managerd", &["--config", "/nonexistent"], 2),
        ("vtpmctl", &["--socket", "/nonexistent", "list"], 1),
        ("vrot-device", &["event-log", "/nonexistent"], 2),
    ];
    let started: [(&str, &[&str], i32); 3] = [
        ("vtpm-backend", &["--runtime", "/nonexistent"], 1),
        (
            "vtpm-backend",
            &["--control", "/nonexistent/c", "--state", "/dev/null"],
            1,
        ),
        ("vrot-service", &["serve", "--tpm", "/nonexistent"], 1),
    ];
    for (name, arguments, expected) in wrong.into_iter().chain(started) {
        let mut command = Command::new(program(name)?);
        command.args(arguments).stdout(Stdio::null());
        assert_eq!(
            status(command.stderr(unread()?))?,
            expected,
            "{command:?}: unread"
        );
        assert_eq!(
            status(command.stderr(full()?))?,
            expected,
            "{command:?}: full"
        );
    }
    Ok(())
}

/// Programs that serve end although nobody takes their last words.
#[test]
fn a_reader_of_the_log_that_stalls_keeps_no_program_from_ending() -> Result<()> {
    let failing: [(&str, &[&str], i32); 2] = [
        ("vtpm-managerd", &["--config", "/nonexistent"], 2),
        ("vrot-service", &["serve", "--tpm", "/nonexistent"], 1),
    ];
    for (name, arguments, expected) in failing {
        let (_reader, writer) = stalled()?;
        let mut command = Command::new(program(name)?);
        let mut child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(writer)
            .spawn()?;
        let ended = wait_for("its end", Duration::from_secs(60), || Ok(child.try_wait()?));
        // Where it does not end by itself, it ends with the test.
        let _ = child.kill();
        assert_eq!(ended?.code(), Some(expected), "{name}");
    }
    Ok(())
}
