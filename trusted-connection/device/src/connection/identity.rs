//! What a device shows of itself.

use std::path::Path;
use std::sync::Arc;

use attested_tls::key_files::{KeyFilesError, certified_key};
use attested_tls::{Attester, CertificateAlone, Unattested};
use rustls::sign::CertifiedKey;

/// What a device shows of itself to services: its identity in TLS, if it has one, and evidence, if it
/// has a root of trust.
#[derive(Clone)]
pub struct DeviceIdentity {
    pub(crate) key: Option<CertifiedKey>,
    pub(crate) attester: Arc<dyn Attester>,
}

impl DeviceIdentity {
    /// A device that has none.
    pub fn none() -> Self {
        Self {
            key: None,
            attester: Arc::new(Unattested),
        }
    }

    /// A device with a key in software and a certificate for it, which services may or may not accept
    /// in the place of evidence.
    pub fn in_software(key: CertifiedKey) -> Self {
        Self {
            key: Some(key),
            attester: Arc::new(CertificateAlone),
        }
    }

    /// The same device with a root of trust: `attester` makes its evidence.
    pub fn attested(self, attester: Arc<dyn Attester>) -> Self {
        Self { attester, ..self }
    }

    /// Reads certificate and key of a device from files in PEM: its own certificate first, then those
    /// that lead to its issuer.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, KeyFilesError> {
        certified_key(certificate, key).map(Self::in_software)
    }
}
