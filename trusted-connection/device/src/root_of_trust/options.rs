//! Where a device's root of trust is.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::BOOT_PCRS;
use attested_tls::Attester;
use cert_chain::PcrSelection;
use clap::Args;

use super::attester::DeviceAttester;
use super::folder::IdentityFolder;
use crate::tpm::DeviceTpm;

/// Where a device's root of trust is, for the commands that show evidence of it.
#[derive(Debug, Args)]
pub struct RootOfTrustOptions {
    /// The folder of this device's identity (`vrot-device enrol`): services that demand evidence of
    /// devices get it, made with this device's TPM.
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// The device's TPM.
    #[arg(long, value_name = "DEVICE", default_value = super::enrol::TPM, requires = "identity")]
    tpm: PathBuf,
    /// The event log of the device's boot.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/sys/kernel/security/tpm0/binary_bios_measurements",
        requires = "identity"
    )]
    event_log: PathBuf,
    /// The PCRs to quote. Services ask for all of these; leave out those that something goes on
    /// extending after the boot, and have the services' policies ignore them.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_values_t = BOOT_PCRS,
        requires = "identity"
    )]
    quoted_pcrs: Vec<u8>,
}

impl RootOfTrustOptions {
    /// What makes evidence of this device, if it has an identity.
    pub fn attester(&self) -> Result<Option<Arc<dyn Attester>>> {
        let Some(identity) = &self.identity else {
            return Ok(None);
        };
        let quoted = PcrSelection::new(self.quoted_pcrs.iter().copied())
            .context("--quoted-pcrs cannot be used")?;
        let attester = DeviceAttester::new(
            DeviceTpm::open(&self.tpm)?,
            IdentityFolder::new(identity),
            &self.event_log,
            quoted,
        )
        .with_context(|| format!("the identity in {} cannot be used", identity.display()))?;
        Ok(Some(Arc::new(attester)))
    }
}
