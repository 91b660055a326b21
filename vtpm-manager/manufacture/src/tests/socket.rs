//! The data socket of swtpm, where commands and responses go as they are.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tpm_wire::{MAX_SIZE, read_frame};

use crate::CommandChannel;

/// A connection to it.
#[derive(Debug)]
pub(super) struct TpmSocket {
    stream: UnixStream,
}

/// Making an RSA key takes a second on a busy machine; after a minute there is no answer to come.
const TIMEOUT: Duration = Duration::from_secs(60);

impl TpmSocket {
    /// Connects to the data socket.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream })
    }
}

impl CommandChannel for TpmSocket {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        Ok(read_frame(&mut self.stream, MAX_SIZE)?.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}
