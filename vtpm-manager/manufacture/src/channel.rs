//! A way to send commands to one vRoT.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tpm_wire::{MAX_SIZE, read_frame};

/// Takes a TPM command and returns the response.
///
/// Implemented by [`TpmSocket`]; over a running vRoT, by a channel that passes commands between those
/// of the guest; and by fakes in tests.
pub trait CommandChannel {
    /// Sends one command and waits for its response.
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;

    /// Has a guest wait from now on, for a fraction of a second at most, or lets it go on. Where
    /// there is no guest, this does nothing.
    fn hold(&mut self, _held: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The data socket of a vRoT (or of swtpm), where commands and responses go as they are.
#[derive(Debug)]
pub struct TpmSocket {
    stream: UnixStream,
}

/// Making an RSA key takes a second on a busy machine; after a minute there is no answer to come.
const TIMEOUT: Duration = Duration::from_secs(60);

impl TpmSocket {
    /// Connects to the data socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
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

impl<C: CommandChannel + ?Sized> CommandChannel for &mut C {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        (**self).execute(command)
    }

    fn hold(&mut self, held: bool) -> io::Result<()> {
        (**self).hold(held)
    }
}
