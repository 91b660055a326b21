//! A connection with one deadline for all that is said on it.
//!
//! Time limits of a socket count from each read and write anew: who sends a byte now and then
//! would never be too slow.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A stream on which nothing is read or written after its deadline.
#[derive(Debug)]
pub struct TimedStream {
    stream: TcpStream,
    deadline: Instant,
}

impl TimedStream {
    /// Gives a connection until `deadline`.
    pub fn until(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    /// Sets another deadline, for the next part of the conversation.
    pub fn extend(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer).map_err(as_late)
    }
}

impl Write for TimedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes).map_err(as_late)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What is left until a deadline; an error when that is nothing.
pub fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(late()),
        left => Ok(left),
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other end is too slow")
}

/// Unix reports a socket's time limit as `WouldBlock`.
fn as_late(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => error,
    }
}
