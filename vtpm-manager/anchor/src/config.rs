//! Where the physical TPM is, and which PCRs matter.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use cert_chain::{HashAlgorithm, PcrSelection};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the trust anchor needs to know before it starts.
#[derive(Clone, Debug)]
pub struct AnchorConfig {
    /// The way to the TPM.
    pub tpm: Tcti,
    /// The PCR bank that is approved and quoted. Without one the first of
    /// [`BANKS`](cert_chain::pcr::BANKS) that is active and has a boot measured into it.
    pub pcr_bank: Option<HashAlgorithm>,
    /// PCRs whose values an operator approves: the policy of host IK and root secret.
    pub policy_pcrs: PcrSelection,
    /// PCRs in a host quote.
    pub quoted_pcrs: PcrSelection,
    /// The file in which the anchor keeps policy key, approvals and the sealed root secret.
    /// Nothing in it is secret outside this TPM.
    pub record: PathBuf,
}

impl AnchorConfig {
    /// The usual configuration with the given TPM and record.
    pub fn new(tpm: Tcti, record: PathBuf) -> Self {
        Self {
            tpm,
            pcr_bank: None,
            policy_pcrs: selection(DEFAULT_POLICY_PCRS),
            quoted_pcrs: selection(DEFAULT_QUOTED_PCRS),
            record,
        }
    }
}

/// Firmware, its configuration, option ROMs, boot loader and Secure Boot state (TCG PC Client
/// Platform Firmware Profile §3.3.4). Not 8 and above: they hold kernel and command line, which
/// change with every update; hosts whose operator approves those as well add them.
pub const DEFAULT_POLICY_PCRS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7];

/// What a verifier sees, and asks for: all that a boot chain measures into.
pub const DEFAULT_QUOTED_PCRS: &[u8] = &attestation::BOOT_PCRS;

/// The storage root key (TCG TPM v2.0 Provisioning Guidance §7.8).
pub const SRK_HANDLE: u32 = 0x8100_0001;

/// The host's identity key: in the owner's range of handles, clear of where tools keep storage
/// keys (0x81000001 and the next few) and endorsement keys (0x81010001 on).
pub const IK_HANDLE: u32 = 0x8100_0100;

/// A way to a TPM, in the words that `TPM2TOOLS_TCTI` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tcti {
    /// `device:<path>`, e.g. `device:/dev/tpmrm0`.
    Device(PathBuf),
    /// `swtpm:path=<path>`: swtpm on the Unix sockets `<path>` and `<path>.ctrl`.
    SwtpmPath(PathBuf),
    /// `swtpm:host=<host>,port=<port>`: swtpm on two TCP ports.
    SwtpmTcp {
        /// Host name or address.
        host: String,
        /// Port of the data channel; the control channel has the next one.
        port: u16,
    },
}

/// A text that names no TPM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` names no TPM: write `device:/dev/tpmrm0`, `swtpm:path=SOCKET` or \
     `swtpm:host=HOST,port=PORT`"
)]
pub struct TctiError {
    given: String,
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || TctiError {
            given: text.to_owned(),
        };
        match text.split_once(':').ok_or_else(refused)? {
            ("device", path) if !path.is_empty() => Ok(Self::Device(path.into())),
            ("swtpm", options) => swtpm(options).ok_or_else(refused),
            _ => Err(refused()),
        }
    }
}

fn swtpm(options: &str) -> Option<Tcti> {
    let mut path = None;
    let mut host = None;
    let mut port = None;
    for option in options.split(',') {
        let (key, value) = option.split_once('=')?;
        let place = match key {
            "path" => &mut path,
            "host" => &mut host,
            "port" => &mut port,
            _ => return None,
        };
        if value.is_empty() || place.replace(value).is_some() {
            return None;
        }
    }
    match (path, host, port) {
        (Some(path), None, None) => Some(Tcti::SwtpmPath(path.into())),
        (None, Some(host), Some(port)) => Some(Tcti::SwtpmTcp {
            host: host.to_owned(),
            port: port.parse().ok()?,
        }),
        _ => None,
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::SwtpmPath(path) => write!(f, "swtpm:path={}", path.display()),
            Self::SwtpmTcp { host, port } => write!(f, "swtpm:host={host},port={port}"),
        }
    }
}

impl Serialize for Tcti {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Tcti {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A selection out of constants below 24.
fn selection(pcrs: &[u8]) -> PcrSelection {
    match PcrSelection::new(pcrs.iter().copied()) {
        Ok(selection) => selection,
        Err(error) => unreachable!("a constant selection: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_stock_tools_name_a_tpm() -> anyhow::Result<()> {
        for text in [
            "device:/dev/tpmrm0",
            "swtpm:path=/run/tpm.sock",
            "swtpm:host=127.0.0.1,port=2321",
        ] {
            assert_eq!(text.parse::<Tcti>()?.to_string(), text);
        }
        Ok(())
    }

    #[test]
    fn what_names_no_tpm_is_refused_with_an_example() {
        for text in [
            "",
            "device:",
            "/dev/tpm0",
            "swtpm:",
            "swtpm:port=1",
            "swtpm:path=/a,port=1",
            "swtpm:path=/a,path=/b",
            "swtpm:host=h,port=70000",
            "mssim:host=h,port=1",
        ] {
            let error = text.parse::<Tcti>().map_err(|error| error.to_string());
            assert!(
                matches!(&error, Err(message) if message.contains("device:/dev/tpmrm0")),
                "{text}: {error:?}"
            );
        }
    }
}
