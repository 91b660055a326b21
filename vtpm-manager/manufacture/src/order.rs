//! What is to be made, and what its certificates are to say.

use std::time::Duration;

use cert_chain::{Digest32, Generation, Tenant, VmId, VrotId};
use rustls_pki_types::UnixTime;

/// What certificates say of a vRoT besides its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedSubject {
    /// The VM the vRoT is for.
    pub vm: VmId,
    /// The vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// Which of the lineage's identities this is.
    pub generation: Generation,
}

/// Whether the certificate of the host is the one that the vRoT has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It is.
    Same,
    /// The host got another one since.
    Changed,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct ManufactureOrder {
    /// Whose certificates.
    pub subject: CertifiedSubject,
    /// Digest of the manager program.
    pub manager: Digest32,
    /// Digest of the backend program.
    pub backend: Digest32,
    /// The certificate of the host IK, in DER.
    pub host_certificate: Vec<u8>,
    /// The present time.
    pub now: UnixTime,
    /// How long the vIK's certificate is to live.
    pub vik_lifetime: Duration,
}
