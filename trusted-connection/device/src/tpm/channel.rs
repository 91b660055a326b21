//! The way to a TPM: the kernel's device, or the socket of a software TPM.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tpm_wire::{Disposition, MAX_SIZE, Operation, Response, read_frame};

use super::error::TpmError;
use super::wire::{Command, Reader};

/// An open TPM.
pub(super) enum Channel {
    Device(File),
    Socket(UnixStream),
}

/// A TPM may be busy for others, or with its own tests: half a minute in all.
const BUSY_ATTEMPTS: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_millis(8);
/// Longer than any command of ours takes; a device of the kernel has its own limits.
const PATIENCE: Duration = Duration::from_secs(120);

impl Channel {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.file_type().is_socket() {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            return Ok(Self::Socket(socket));
        }
        let device = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self::Device(device))
    }

    /// Has the TPM carry out a command, and returns the handles of its response, of which there are
    /// `handles`, with its parameters behind them.
    pub(super) fn run(
        &mut self,
        operation: Operation,
        command: &Command,
        handles: usize,
    ) -> Result<Vec<u8>, TpmError> {
        let malformed = || TpmError::Response { operation };
        let response = self.patiently(operation, command)?;
        if !command.has_sessions() {
            return Ok(response);
        }
        // The size of the parameters stands between handles and parameters; authorizations follow.
        let mut reader = Reader::new(&response);
        let handles = reader.take(handles * 4).ok_or_else(malformed)?;
        let length = reader.u32().ok_or_else(malformed)?;
        let length = usize::try_from(length).map_err(|_| malformed())?;
        let parameters = reader.take(length).ok_or_else(malformed)?;
        Ok([handles, parameters].concat())
    }

    fn patiently(&mut self, operation: Operation, command: &Command) -> Result<Vec<u8>, TpmError> {
        let command = command.to_bytes();
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let response = self
                .exchange(&command)
                .map_err(|source| TpmError::Connection { operation, source })?;
            let response = Response::parse(&response).ok_or(TpmError::Response { operation })?;
            let code = response.code();
            if code.is_success() {
                return Ok(response.body().to_vec());
            }
            if code.disposition() != Disposition::TryAgain || attempt == BUSY_ATTEMPTS {
                return Err(TpmError::Refused { operation, code });
            }
            thread::sleep(pause);
            pause = pause.saturating_mul(2);
            attempt += 1;
        }
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Socket(socket) => {
                socket.write_all(command)?;
                read_frame(socket, MAX_SIZE)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            // The kernel takes a command with one write, and gives a response with one read.
            Self::Device(device) => {
                device.write_all(command)?;
                let mut response = vec![0; MAX_SIZE];
                let length = device.read(&mut response)?;
                response.truncate(length);
                Ok(response)
            }
        }
    }
}
