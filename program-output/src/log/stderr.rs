//! Standard error, for a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use printable::printable_json;
use rustix::net::SendFlags;

use super::journal;
use super::line::Line;
use super::queue::Passed;

/// Where a log goes.
#[derive(Debug)]
pub struct Stderr {
    to: To,
    /// Whether the last line was written in part.
    torn: bool,
    /// What every line begins with.
    prefix: String,
    /// Whether its level comes before that, for systemd's journal.
    levels: bool,
}

#[derive(Debug)]
enum To {
    /// Writing may wait: for a thread that does nothing else.
    Waiting(File),
    /// Writing never waits.
    AtOnce(File),
    /// Neither does sending.
    Socket(OwnedFd),
    /// There is none.
    Nowhere,
}

impl Stderr {
    /// For a thread that may wait for who reads it.
    pub(super) fn waiting(file: File) -> Self {
        Self {
            to: To::Waiting(file),
            torn: false,
            prefix: String::new(),
            levels: false,
        }
    }

    /// Where there is no standard error, every line is lost.
    pub(super) fn nowhere() -> Self {
        Self {
            to: To::Nowhere,
            torn: false,
            prefix: String::new(),
            levels: false,
        }
    }

    /// For a loop that must not wait. A pipe or a terminal is opened anew for that, because a
    /// descriptor that is shared with other programs must stay as it is for them. A file is
    /// written as it is: the state of a stand-alone backend waits for the same disk.
    pub fn at_once() -> io::Result<Self> {
        let descriptor = io::stderr().as_fd().try_clone_to_owned()?;
        let file = File::from(descriptor);
        let kind = file.metadata()?.file_type();
        let to = if kind.is_socket() {
            To::Socket(file.into())
        } else if kind.is_fifo() || kind.is_char_device() {
            let mut own = OpenOptions::new();
            own.write(true).custom_flags(O_NONBLOCK | O_NOCTTY);
            To::AtOnce(own.open("/proc/self/fd/2")?)
        } else {
            To::AtOnce(file)
        };
        Ok(Self {
            to,
            torn: false,
            prefix: String::new(),
            levels: false,
        })
    }

    /// The same, with something that every line begins with.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = printable_json(prefix);
        self
    }

    /// The same, for systemd's journal.
    pub(super) fn with_levels(mut self) -> Self {
        self.levels = true;
        self
    }

    /// Writes a line.
    pub fn write(&mut self, line: &Line) -> Passed {
        // What is left of a line that could not be written as a whole ends here.
        let begin = if self.torn { "\n" } else { "" };
        let level = match self.levels {
            true => journal::beginning(line.level),
            false => "",
        };
        let whole = format!("{begin}{level}{}{}\n", self.prefix, line.text);
        let mut rest = whole.as_bytes();
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => break,
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && rest.len() == whole.len() =>
                {
                    return Passed::Later;
                }
                Err(_) => break,
            }
        }
        if rest.len() < whole.len() {
            self.torn = !rest.is_empty();
        }
        if rest.is_empty() {
            Passed::Done
        } else {
            Passed::Lost
        }
    }
}

impl To {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::AtOnce(file) => file.write(bytes),
            Self::Socket(socket) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(socket, bytes, flags)?)
            }
            Self::Nowhere => Ok(0),
            Self::Waiting(file) => match file.write(bytes) {
                // Another process made it non-blocking, for all that share the open file.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    Err(io::ErrorKind::Interrupted.into())
                }
                written => written,
            },
        }
    }
}
