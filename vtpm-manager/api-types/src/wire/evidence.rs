//! What evidence is asked for.

use std::collections::BTreeMap;

use cert_chain::{HashAlgorithm, VmId};
use serde::{Deserialize, Serialize};

/// Media type of an evidence set.
pub const EVIDENCE_SET: &str = "application/cbor";

/// What evidence is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EvidenceRequest {
    /// The verifier's nonce: 16 to 64 bytes in hexadecimal digits.
    pub nonce: String,
    /// Of which VMs, at least one. Without it, of all on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<Vec<VmId>>,
}

/// What a VM's PCRs hold now, as its vRoT has quoted them for its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PcrsView {
    /// The bank that was quoted.
    pub bank: HashAlgorithm,
    /// Values of the PCRs that a boot is measured into, in hexadecimal.
    pub pcrs: BTreeMap<u8, String>,
}
