//! What others write to this process's standard error: C libraries, and programs that it starts.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, pipe2};

use super::stderr::Stderr;

/// Of a line that others wrote.
const LONGEST: usize = 1000;

/// Standard error as it was before; dropped, it is that again.
#[derive(Debug)]
pub(super) struct TakenOver(OwnedFd);

impl Drop for TakenOver {
    fn drop(&mut self) {
        // If that fails, what is written there still goes to the log.
        let _ = dup2_stderr(&self.0);
    }
}

/// Keeps standard error for the log alone, and puts a pipe in its place. If that is not possible,
/// it stays as it is.
pub(super) fn take_over_standard_error() -> (Stderr, Option<File>, Option<TakenOver>) {
    let own = || io::stderr().as_fd().try_clone_to_owned();
    let Ok(stderr) = own() else {
        return (Stderr::nowhere(), None, None);
    };
    let stderr = Stderr::waiting(stderr.into());
    // What cannot be given back is not taken.
    match own().and_then(|before| Ok((before, put_pipe_in_place()?))) {
        Ok((before, captured)) => (stderr, Some(captured), Some(TakenOver(before))),
        Err(_) => (stderr, None, None),
    }
}

/// What is written to standard error from now on can be read from what this returns.
fn put_pipe_in_place() -> io::Result<File> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    dup2_stderr(write)?;
    Ok(File::from(read))
}

/// Logs line by line what comes, until no process has the other end open.
pub(super) fn log_lines(mut from: File) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => chunk.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for byte in read {
            if *byte == b'\n' {
                log_line(&String::from_utf8_lossy(&line));
                line.clear();
            } else if line.len() < LONGEST {
                line.push(*byte);
            }
        }
    }
}

/// tpm2-tss calls an error whatever a TPM refuses, also what its caller counts on, and the caller
/// has it as an error with its code. So its lines are for those who ask for them
/// (`RUST_LOG=tss2=debug`).
fn log_line(line: &str) {
    match of_tss2(line) {
        Some((module, said)) => tracing::debug!(target: "tss2", module, "{said}"),
        None => tracing::warn!(target: "stderr", "{line}"),
    }
}

/// The module and what it says, of a line of tpm2-tss: `LEVEL:module:file.c:number:function() text`.
fn of_tss2(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(5, ':');
    let (level, module, file) = (parts.next()?, parts.next()?, parts.next()?);
    let (number, said) = (parts.next()?, parts.next()?);
    let levels = ["ERROR", "WARNING", "INFO", "DEBUG", "TRACE"];
    let is_one = levels.contains(&level) && file.ends_with(".c") && number.parse::<u32>().is_ok();
    is_one.then(|| (module, said.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tpm2_tss_are_told_from_others() {
        let line = "ERROR:tcti:src/tss2-tcti/tcti-device.c:452:Tss2_Tcti_Device_Init() Failed to \
                    open specified TCTI device file /none: No such file or directory ";
        let said = "Tss2_Tcti_Device_Init() Failed to open specified TCTI device file /none: No \
                    such file or directory";
        assert_eq!(of_tss2(line), Some(("tcti", said)));
        for other in [
            "ERROR: Could not load tcti, got: \"device:/none\"",
            "ERROR:a:b:c:d",
            "vtpm-backend: user 7 is root or the manager: it is 3:4:5:6",
            "",
        ] {
            assert_eq!(of_tss2(other), None, "{other}");
        }
    }
}
