//! A client of the control channel. Numbers: QEMU, `backends/tpm/tpm_ioctl.h`. What comes from the other
//! end is bounded.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Where a TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Unix(PathBuf),
    Tcp(String, u16),
}

/// A connection to a TPM's control channel.
pub(super) struct Channel {
    stream: Box<dyn Stream>,
}

trait Stream: Read + Write {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// Longer than the slowest request takes: a TPM 2.0 that is made anew takes some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a TPM's description of itself has.
const MAX_INFO: usize = 1024 * 1024;

impl Channel {
    pub(super) fn connect(place: &Place) -> Result<Self> {
        let stream: Box<dyn Stream> = match place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path);
                let shown = path.display();
                let stream = stream.with_context(|| format!("no TPM answers at {shown}"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Place::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port));
                let stream = stream.with_context(|| format!("no TPM answers at {host}:{port}"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self { stream })
    }

    /// Sends a request with its number.
    pub(super) fn send(&mut self, code: u32, body: &[u8]) -> Result<()> {
        // At once: swtpm reads a request with one read.
        let request = [&code.to_be_bytes(), body].concat();
        self.stream
            .write_all(&request)
            .context("the TPM takes no request")
    }

    /// So many bytes of an answer.
    pub(super) fn receive(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut answer = vec![0; length];
        self.stream
            .read_exact(&mut answer)
            .context("the TPM gives no answer, or half of one")?;
        Ok(answer)
    }

    fn words<const N: usize>(&mut self) -> Result<[u32; N]> {
        let mut words = [0; N];
        let bytes = self.receive(4 * N)?;
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = bytes.try_into().map(u32::from_be_bytes)?;
        }
        Ok(words)
    }

    /// The first of an answer's words, if it says that the request succeeded.
    fn succeeded(name: &str, result: u32) -> Result<()> {
        ensure!(result == 0, "TPM result from {name}: 0x{result:x}");
        Ok(())
    }

    /// Sends a request whose answer says only whether it succeeded.
    pub(super) fn order(&mut self, name: &str, code: u32, body: &[u8]) -> Result<()> {
        self.send(code, body)?;
        let [result] = self.words()?;
        Self::succeeded(name, result)
    }

    pub(super) fn capabilities(&mut self) -> Result<u64> {
        self.send(1, &[])?;
        let [high, low] = self.words()?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    pub(super) fn established(&mut self) -> Result<bool> {
        self.send(4, &[])?;
        let [result] = self.words()?;
        Self::succeeded("PTM_GET_TPMESTABLISHED", result)?;
        let bit = self.receive(4)?;
        Ok(bit.first().is_some_and(|bit| *bit != 0))
    }

    pub(super) fn configuration(&mut self) -> Result<u32> {
        self.send(15, &[])?;
        let [result, flags] = self.words()?;
        Self::succeeded("PTM_GET_CONFIG", result)?;
        Ok(flags)
    }

    /// The size of the buffers: as it is, at least, at most.
    pub(super) fn buffer_size(&mut self, wanted: u32) -> Result<[u32; 3]> {
        self.send(17, &wanted.to_be_bytes())?;
        let [result, current, minimum, maximum] = self.words()?;
        Self::succeeded("PTM_SET_BUFFERSIZE", result)?;
        Ok([current, minimum, maximum])
    }

    /// What the TPM says of itself, piece by piece.
    pub(super) fn info(&mut self, flags: u64) -> Result<String> {
        let mut info = Vec::new();
        loop {
            let offset = u32::try_from(info.len())?;
            // Flags, offset, and a field that fills up.
            let body = [
                flags.to_be_bytes().as_slice(),
                &offset.to_be_bytes(),
                &[0; 4],
            ]
            .concat();
            self.send(18, &body)?;
            let [result] = self.words()?;
            Self::succeeded("PTM_GET_INFO", result)?;
            let [total, length] = self.words()?;
            let (total, length) = (usize::try_from(total)?, usize::try_from(length)?);
            if total > MAX_INFO || length == 0 || info.len() + length > total {
                bail!("the TPM describes itself in pieces that make no whole");
            }
            info.extend(self.receive(length)?);
            if info.len() == total {
                break;
            }
        }
        while info.last() == Some(&0) {
            info.pop();
        }
        String::from_utf8(info).context("the TPM describes itself in no text")
    }
}
