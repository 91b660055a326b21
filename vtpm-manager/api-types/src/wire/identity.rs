//! Keys and certificates of a vRoT.

use cert_chain::{Digest32, Generation, HostName, Tenant, TpmName, VmId, VrotId};
use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// Keys and certificates of a vRoT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct IdentityView {
    /// Its number.
    pub vrot: VrotId,
    /// The VM that it belongs to.
    pub vm: VmId,
    /// Whose VM that is.
    pub tenant: Tenant,
    /// Its generation.
    pub generation: Generation,
    /// The host that certified it.
    pub host: Option<HostName>,
    /// Its identity key.
    pub vik: KeyView,
    /// The key with which the VM's service authenticates itself in TLS; none in a vRoT that was made
    /// before there were such keys.
    pub tls: Option<KeyView>,
    /// Its RSA-2048 endorsement key.
    pub ek_rsa: KeyView,
    /// Its P-256 endorsement key.
    pub ek_p256: KeyView,
    /// SHA-256 value of the manager program that certified the identity key.
    pub manager_digest: Digest32,
    /// SHA-256 value of the backend program at that time.
    pub backend_digest: Digest32,
    /// The host's certificate, which issued the others. The issuer's root is not part of it.
    pub chain_pem: String,
}

/// One key and its certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeyView {
    /// The TPM's name of the key.
    pub name: TpmName,
    /// The public key.
    pub public_key_pem: String,
    /// `TPMT_PUBLIC` in hexadecimal.
    pub public_area: String,
    /// Whether it is certified.
    pub state: CertificateState,
    /// Its certificate; none while that is pending.
    pub certificate_pem: Option<String>,
    /// Last second of the certificate.
    pub not_after: Option<Timestamp>,
}

/// Whether there is a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CertificateState {
    /// It is still to be signed by the physical TPM, or written into the vRoT, which happens while
    /// the VM runs.
    Pending,
    /// It is there, and the guest can read it.
    Issued,
}
