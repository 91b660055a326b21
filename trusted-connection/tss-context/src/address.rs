//! Where a TPM is.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::str::FromStr;

use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, Error};

/// Where a TPM is: its device, behind the kernel's resource manager; or the two TCP ports of a software TPM,
/// for whoever tries a program without another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmAddress {
    /// A device, as `/dev/tpmrm0`.
    Device(PathBuf),
    /// Commands at this port, and the TPM emulator's control channel at the one behind it.
    Software {
        /// The host.
        host: String,
        /// The port for commands.
        port: u16,
    },
}

/// Something that names no TPM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no TPM: give a device such as /dev/tpmrm0, or swtpm:host=HOST,port=PORT")]
pub struct NoTpmAddress(String);

/// Takes one command with each write, and gives one response with each read.
pub trait Channel: Read + Write {}

impl<T: Read + Write> Channel for T {}

impl TpmAddress {
    /// A connection of the TCG software stack.
    pub fn context(&self) -> Result<Context, Error> {
        let name = match self {
            Self::Device(device) => format!("device:{}", device.display()),
            Self::Software { .. } => self.to_string(),
        };
        TctiNameConf::from_str(&name).and_then(Context::new)
    }

    /// A channel for commands that the TCG software stack does not know.
    pub fn open(&self) -> io::Result<Box<dyn Channel>> {
        Ok(match self {
            Self::Device(device) => {
                Box::new(OpenOptions::new().read(true).write(true).open(device)?)
            }
            Self::Software { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

impl FromStr for TpmAddress {
    type Err = NoTpmAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || NoTpmAddress(text.to_owned());
        let Some(options) = text.strip_prefix("swtpm:") else {
            return match text.is_empty() {
                true => Err(refused()),
                false => Ok(Self::Device(text.into())),
            };
        };
        let options = options.strip_prefix("host=").ok_or_else(refused)?;
        let (host, port) = options.split_once(",port=").ok_or_else(refused)?;
        Ok(Self::Software {
            host: host.to_owned(),
            port: port.parse().map_err(|_| refused())?,
        })
    }
}

impl std::fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(device) => write!(f, "{}", device.display()),
            Self::Software { host, port } => write!(f, "swtpm:host={host},port={port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["/dev/tpmrm0", "tpm", "swtpm:host=127.0.0.1,port=2321"] {
            let address = text
                .parse::<TpmAddress>()
                .map(|address| address.to_string());
            assert_eq!(address.as_deref(), Ok(text));
        }
        for text in ["", "swtpm:", "swtpm:port=1", "swtpm:host=h,port=70000"] {
            assert!(text.parse::<TpmAddress>().is_err(), "{text}");
        }
    }
}
