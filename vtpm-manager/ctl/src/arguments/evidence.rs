//! Options of `vtpmctl evidence`.

use std::path::PathBuf;

use attestation::Nonce;
use cert_chain::VmId;
use clap::Args;

/// Which evidence, and where to.
#[derive(Debug, Args)]
pub(crate) struct EvidenceArguments {
    /// The VMs. Without one, all of this host.
    #[arg(value_name = "VM")]
    pub(crate) vms: Vec<VmId>,
    /// The verifier's nonce: 16 to 64 bytes in hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    pub(crate) nonce: Nonce,
    /// The file for the evidence set, for `vrot-device verify --purpose tenant`.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: PathBuf,
}
