//! A certificate and its key, in files.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bounded_file::{read_bounded, read_open_bounded};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::tls::{KeyExchange, provider};

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFilesError {
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
/// Permissions of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// Reads a certificate, with those that lead to its issuer after it, and its key, in PEM.
pub fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, KeyFilesError> {
    let no_pem = |path: &Path, what| KeyFilesError::Pem {
        path: path.to_owned(),
        what,
    };
    let chain = read_bounded(certificate, MAX_CERTIFICATES).map_err(unread(certificate))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|_| no_pem(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(no_pem(certificate, "certificate"));
    }
    let pem = read_key(key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| no_pem(key, "private key"))?;
    CertifiedKey::from_der(chain, private, &provider(KeyExchange::HybridFirst)).map_err(|source| {
        KeyFilesError::Key {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        }
    })
}

/// The permissions are those of the very file that is read.
fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFilesError> {
    let file = File::open(path).map_err(unread(path))?;
    let mode = file.metadata().map_err(unread(path))?.permissions().mode();
    if mode & OTHERS != 0 {
        return Err(KeyFilesError::Exposed {
            path: path.to_owned(),
        });
    }
    let pem = read_open_bounded(&file, MAX_KEY).map_err(unread(path))?;
    Ok(Zeroizing::new(pem))
}

fn unread(path: &Path) -> impl Fn(io::Error) -> KeyFilesError {
    move |source| KeyFilesError::Read {
        path: path.to_owned(),
        source,
    }
}
