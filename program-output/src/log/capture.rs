//! What others write to this process's standard error: C libraries, and programs that it starts.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::fcntl::OFlag;
use nix::unistd::{dup2_stderr, pipe2};

use super::stderr::Stderr;

/// Of a line that others wrote.
const LONGEST: usize = 1000;

/// Keeps standard error for the log alone, and puts a pipe in its place. If that is not possible,
/// it stays as it is.
pub(super) fn take_over_standard_error() -> (Stderr, Option<File>) {
    let Ok(own) = io::stderr().as_fd().try_clone_to_owned() else {
        return (Stderr::nowhere(), None);
    };
    (Stderr::waiting(own.into()), put_pipe_in_place().ok())
}

/// What is written to standard error from now on can be read from what this returns.
fn put_pipe_in_place() -> io::Result<File> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    dup2_stderr(write)?;
    Ok(File::from(read))
}

/// Logs line by line what comes, until nobody can write there any more.
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
                let said = String::from_utf8_lossy(&line);
                tracing::warn!(target: "stderr", "{said}");
                line.clear();
            } else if line.len() < LONGEST {
                line.push(*byte);
            }
        }
    }
}
