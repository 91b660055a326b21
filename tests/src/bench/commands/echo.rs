//! A server that answers with what it got: what a round trip takes if nothing is done.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

/// A process of this program that serves at its standard input.
pub(super) struct Echo {
    process: Child,
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// The argument that makes it one.
const ARGUMENT: &str = "--echo";

impl Echo {
    /// Starts it.
    pub(super) fn start() -> Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let process = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("starting an echo server")?;
        Ok(Self {
            process,
            stream,
            buffer: vec![0; 4096],
        })
    }

    /// Its process.
    pub(super) fn process(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process.id())?))
    }

    /// Sends bytes and reads them back.
    pub(super) fn execute(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        let length = self.stream.read(&mut self.buffer)?;
        ensure!(length == bytes.len(), "{length} bytes came back");
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It ends with its stream.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// The server's side: serves at standard input until that ends.
pub(in crate::bench) fn serve() -> Result<()> {
    let stream = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut stream = UnixStream::from(stream);
    let mut buffer = vec![0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}
