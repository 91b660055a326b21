//! The connection to a TPM, and what is remembered of it.

use std::collections::HashMap;
use std::str::FromStr;

use cert_chain::{AttestationKey, Digest32, PcrValues};
use tpm_wire::Operation;
use tss_esapi::Context;
use tss_esapi::handles::{KeyHandle, NvIndexHandle};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::tcti_ldr::{DeviceConfig, NetworkTPMConfig, TctiNameConf};
use tss_esapi::tss2_esys::TPMT_TK_VERIFIED;

use super::convert::checked;
use super::prepared::PreparedSession;
use super::register_writer::RegisterWriter;
#[cfg(feature = "software-tpm")]
use crate::bridge::Bridge;
use crate::config::Tcti;
use crate::error::HardwareError;

/// A TPM behind an ESYS context.
pub(super) struct EsysRoot {
    /// Dropped before the bridge: it flushes what it left in the TPM.
    pub(super) context: Context,
    pub(super) srk: Option<KeyHandle>,
    pub(super) ik: Option<(KeyHandle, AttestationKey)>,
    /// Tickets for signatures that the TPM verified, by signature. They hold until the owner
    /// hierarchy is cleared.
    pub(super) tickets: HashMap<Digest32, TPMT_TK_VERIFIED>,
    /// Handles of the rollback registers' indices, by number.
    pub(super) nv_indices: HashMap<u32, NvIndexHandle>,
    /// The session in which they are read and written.
    pub(super) index_session: Option<AuthSession>,
    /// Writes the registers.
    pub(super) register_writer: RegisterWriter,
    /// The session of the next quote.
    pub(super) prepared: Option<PreparedSession>,
    /// What was quoted last.
    pub(super) quoted: Option<PcrValues>,
    /// Not read: the connection lasts as long as it.
    #[cfg(feature = "software-tpm")]
    _bridge: Option<Bridge>,
}

const CONNECT: Operation = Operation("connecting to the TPM");

impl EsysRoot {
    /// Opens a connection.
    pub(super) fn connect(tpm: &Tcti) -> Result<Self, HardwareError> {
        match tpm {
            Tcti::Device(path) => Self::over(
                tpm,
                DeviceConfig::from_str(&path.to_string_lossy()).map(TctiNameConf::Device),
            ),
            Tcti::SwtpmTcp { host, port } => Self::over(tpm, network(host, *port)),
            #[cfg(feature = "software-tpm")]
            Tcti::SwtpmPath(path) => {
                let bridge = Bridge::open(path).map_err(|source| HardwareError::Bridge {
                    operation: CONNECT,
                    source,
                })?;
                let address = bridge.address();
                let mut root = Self::over(tpm, network(&address.ip().to_string(), address.port()))?;
                root._bridge = Some(bridge);
                Ok(root)
            }
            #[cfg(not(feature = "software-tpm"))]
            Tcti::SwtpmPath(_) => Err(HardwareError::NoUnixSockets),
        }
    }

    fn over(tpm: &Tcti, name: tss_esapi::Result<TctiNameConf>) -> Result<Self, HardwareError> {
        let name = checked(CONNECT, name)?;
        Ok(Self {
            context: checked(CONNECT, Context::new(name))?,
            srk: None,
            ik: None,
            tickets: HashMap::new(),
            nv_indices: HashMap::new(),
            index_session: None,
            register_writer: RegisterWriter::new(tpm),
            prepared: None,
            quoted: None,
            #[cfg(feature = "software-tpm")]
            _bridge: None,
        })
    }
}

fn network(host: &str, port: u16) -> tss_esapi::Result<TctiNameConf> {
    NetworkTPMConfig::from_str(&format!("host={host},port={port}")).map(TctiNameConf::Swtpm)
}
