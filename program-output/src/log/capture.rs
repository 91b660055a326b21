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
    let taken = || -> io::Result<(File, File)> {
        let own = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        dup2_stderr(write)?;
        Ok((own, File::from(read)))
    };
    if let Ok((own, read)) = taken() {
        return (Stderr::waiting(own), Some(read));
    }
    let same = io::stderr().as_fd().try_clone_to_owned();
    let stderr = same.map_or_else(
        |_| Stderr::nowhere(),
        |same| Stderr::waiting(File::from(same)),
    );
    (stderr, None)
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
