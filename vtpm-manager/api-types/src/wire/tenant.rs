//! What a tenant is told of its VMs on one host.

use cert_chain::{Generation, HostName, VmId, VrotId};
use serde::{Deserialize, Serialize};

use super::identity::{CertificateState, IdentityView};
use super::vrot::StateLossView;
use crate::timestamp::Timestamp;

/// A tenant's VMs on a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TenantVmList {
    /// The host's name, if an issuer gave it one.
    pub host: Option<HostName>,
    /// In the order of their numbers.
    pub vms: Vec<TenantVmView>,
}

/// One VM, and how it stands with its vRoT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TenantVmView {
    /// The VM.
    pub vm: VmId,
    /// Its vRoT.
    pub vrot: VrotId,
    /// What people call it.
    pub name: Option<String>,
    /// Where in its life the vRoT is: `assigned`, `running`, `suspended` or `stopped`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// Rises with each sanctioned restore or copy.
    pub generation: Generation,
    /// Whether the identity key is certified.
    pub identity: CertificateState,
    /// Last second of that certificate.
    pub not_after: Option<Timestamp>,
    /// Whether a VMM is attached.
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    pub degraded: bool,
    /// State that the guest was told of and that may have been lost.
    pub state_loss: Option<StateLossView>,
    /// Whether its TPM had its life elsewhere before.
    pub imported: bool,
}

/// One VM, with the chain of its identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TenantVmDetails {
    /// The VM.
    #[serde(flatten)]
    pub vm: TenantVmView,
    /// Keys and certificates of its vRoT, with the host's.
    pub keys: IdentityView,
    /// The issuer's root, as the host has it: whoever trusts it must know it from elsewhere.
    pub issuer_pem: Option<String>,
}

/// What evidence is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TenantEvidenceRequest {
    /// The verifier's nonce: 16 to 64 bytes in hexadecimal digits.
    pub nonce: String,
    /// Of which VMs, at least one. Without it, of all of the tenant's on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<Vec<VmId>>,
}
