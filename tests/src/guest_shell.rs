//! Commands in the guest, over its second serial port.
//!
//! The port carries a plain shell that reads commands and has no prompt. Binary output travels
//! as base64 between two markers that cannot occur in it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A connection to the guest's shell.
#[derive(Debug)]
pub struct GuestShell {
    stream: UnixStream,
    commands: u32,
}

impl GuestShell {
    /// Connects to the socket that QEMU made for the serial port.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connecting {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(Self {
            stream,
            commands: 0,
        })
    }

    /// Runs a command line and yields its standard output; fails unless it ended with 0.
    pub fn run(&mut self, command: &str) -> Result<Vec<u8>> {
        let (status, output, errors) = self.outcome(command)?;
        if status != 0 {
            bail!(
                "in the guest, `{command}` ended with {status}:\n{}{}",
                String::from_utf8_lossy(&output),
                String::from_utf8_lossy(&errors)
            );
        }
        Ok(output)
    }

    /// Like [`GuestShell::run`], as text.
    pub fn text(&mut self, command: &str) -> Result<String> {
        Ok(String::from_utf8(self.run(command)?)?)
    }

    /// Runs a command line: exit status, standard output and standard error.
    pub fn outcome(&mut self, command: &str) -> Result<(i32, Vec<u8>, Vec<u8>)> {
        self.commands += 1;
        let number = self.commands;
        // The quotes keep an echo of the command itself from looking like the marker.
        let line = format!(
            "( {command} ) > /tmp/out 2> /tmp/err < /dev/null; echo \"@be\"\"gin {number} $?\"; \
             base64 /tmp/out; echo @errors; base64 /tmp/err; echo \"@e\"\"nd {number}\"\n"
        );
        self.stream.write_all(line.as_bytes())?;
        let answer = self.read_until(&format!("@end {number}"))?;
        let begin = format!("@begin {number} ");
        let (_, answer) = answer
            .split_once(&begin)
            .with_context(|| format!("the guest's shell answered: {answer}"))?;
        let (status, answer) = answer.split_once('\n').context("a status line")?;
        let (output, errors) = answer.split_once("@errors").context("two outputs")?;
        Ok((
            status.trim().parse().context("an exit status")?,
            decode_base64(output)?,
            decode_base64(errors)?,
        ))
    }

    /// Reads a file of the guest.
    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>> {
        self.run(&format!("cat {path}"))
    }

    fn read_until(&mut self, marker: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        let mut answer = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while Instant::now() < end {
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the guest's serial port was closed"),
                Ok(count) => answer.extend(chunk.iter().take(count)),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error.into()),
            }
            let text = String::from_utf8_lossy(&answer);
            if let Some((before, _)) = text.split_once(marker) {
                return Ok(before.to_owned());
            }
        }
        bail!(
            "the guest's shell did not finish in {} s: {}",
            PATIENCE.as_secs(),
            String::from_utf8_lossy(&answer)
        )
    }
}

fn decode_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = 0u32;
    let mut bits = 0;
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' | b'\r' | b'\n' => continue,
            other => bail!("byte {other:#04x} is not base64"),
        };
        buffer = (buffer << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((buffer >> bits) & 0xff)?);
        }
    }
    Ok(bytes)
}

const PATIENCE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length_is_decoded() -> Result<()> {
        assert_eq!(decode_base64("")?, b"");
        assert_eq!(decode_base64("Zg==\r\n")?, b"f");
        assert_eq!(decode_base64("Zm8=")?, b"fo");
        assert_eq!(decode_base64("Zm9v")?, b"foo");
        assert_eq!(decode_base64("Zm9v\nYmFy")?, b"foobar");
        assert!(decode_base64("Zm9v*").is_err());
        Ok(())
    }
}
