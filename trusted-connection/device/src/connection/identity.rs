//! What a device shows of itself.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attested_tls::tls::{KeyExchange, provider};
use attested_tls::{Attester, CertificateAlone, Unattested};
use bounded_file::read_bounded;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// What a device shows of itself to services: its identity in TLS, if it has one, and evidence, if it
/// has a root of trust.
#[derive(Clone)]
pub struct DeviceIdentity {
    pub(crate) key: Option<CertifiedKey>,
    pub(crate) attester: Arc<dyn Attester>,
}

/// Why a device's certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everybody may read the key.
    #[error("{} can be read by every user of this machine: chmod o= it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Not what it should be.
    #[error("{} has no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// Certificate and key do not go together.
    #[error("{} and {} cannot be used together", certificate.display(), key.display())]
    Key {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

const MAX_CERTIFICATES: usize = 64 * 1024;
const MAX_KEY: usize = 16 * 1024;

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
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path, limit| {
            read_bounded(path, limit).map_err(|source| IdentityError::Read {
                path: path.to_owned(),
                source,
            })
        };
        let no_pem = |path: &Path, what| IdentityError::Pem {
            path: path.to_owned(),
            what,
        };
        let chain = read(certificate, MAX_CERTIFICATES)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|_| no_pem(certificate, "certificates"))?;
        if chain.is_empty() {
            return Err(no_pem(certificate, "certificates"));
        }
        let mode = std::fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
        if mode & OTHERS != 0 {
            return Err(IdentityError::Exposed {
                path: key.to_owned(),
            });
        }
        let pem = Zeroizing::new(read(key, MAX_KEY)?);
        let private =
            PrivateKeyDer::from_pem_slice(&pem).map_err(|_| no_pem(key, "private key"))?;
        CertifiedKey::from_der(chain, private, &provider(KeyExchange::HybridFirst))
            .map(Self::in_software)
            .map_err(|source| IdentityError::Key {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                source,
            })
    }
}

/// Permissions of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;
