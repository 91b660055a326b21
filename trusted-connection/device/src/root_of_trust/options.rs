//! Where a device's root of trust is.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use attestation::BOOT_PCRS;
use attested_tls::Attester;
use cert_chain::PcrSelection;
use clap::Args;

use super::attester::DeviceAttester;
use super::evidence::RootOfTrust;
use super::folder::IdentityFolder;
use super::signer::DeviceSigner;
use crate::tpm::DeviceTpm;

/// Where a device's root of trust is, for the commands that show evidence of it or sign with it.
#[derive(Clone, Debug, Args)]
pub struct RootOfTrustOptions {
    /// The folder of this device's identity (`vrot-device enrol`), which this device's TPM proves: to
    /// services that demand evidence of devices, and beside data that it signs.
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
    /// The PCRs to quote. Policies ask for all of these; leave out those that something goes on
    /// extending after the boot, and have the policies ignore them.
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
        let attester = DeviceAttester::new(
            DeviceTpm::open(&self.tpm)?,
            IdentityFolder::new(identity),
            &self.event_log,
            self.quoted()?,
        )
        .with_context(|| format!("the identity in {} cannot be used", identity.display()))?;
        Ok(Some(Arc::new(attester)))
    }

    /// What signs data as this device.
    pub fn signer(&self) -> Result<DeviceSigner> {
        let identity = (self.identity.as_ref()).context("--identity says as which device")?;
        let root = RootOfTrust {
            tpm: DeviceTpm::open(&self.tpm)?,
            identity: IdentityFolder::new(identity),
            event_log: self.event_log.clone(),
            quoted: self.quoted()?,
        };
        DeviceSigner::new(root)
            .with_context(|| format!("the identity in {} cannot be used", identity.display()))
    }

    fn quoted(&self) -> Result<PcrSelection> {
        PcrSelection::new(self.quoted_pcrs.iter().copied()).context("--quoted-pcrs cannot be used")
    }
}
