//! A way to send commands to one vRoT.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Takes a TPM command and returns the response.
///
/// Implemented by [`TpmSocket`]; over a running vRoT, by whoever passes commands between those
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

/// Making an RSA key takes a second on a busy machine; a minute says that nobody answers.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Tag, size and code (TPM 2.0 Part 1 §18).
const HEADER: usize = 10;
/// `TPM_PT_MAX_RESPONSE_SIZE` of libtpms.
const MAX_RESPONSE: usize = 4096;

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
        let mut response = vec![0; HEADER];
        self.stream.read_exact(&mut response)?;
        let size = response
            .get(2..6)
            .and_then(|size| size.try_into().ok())
            .map(u32::from_be_bytes)
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (HEADER..=MAX_RESPONSE).contains(size))
            .ok_or_else(|| io::Error::other("the response has an impossible size"))?;
        response.resize(size, 0);
        self.stream
            .read_exact(response.get_mut(HEADER..).unwrap_or_default())?;
        Ok(response)
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
