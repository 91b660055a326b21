//! The key that authenticates the host in TLS, and its certificate.
//!
//! A signature of the physical TPM takes some 70 ms, and everything else of this host waits meanwhile: so
//! the key of handshakes is one in this process's locked memory, which the host IK certifies. It is made
//! anew with each certificate, and lies on no disk.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use locked_memory::{Locked, NotLocked};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{self, CertifiedKey, Signer};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// The key of the host's end, and its certificate: what the next handshake uses.
#[derive(Debug, Default)]
pub struct ServerKey {
    present: RwLock<Option<Arc<CertifiedKey>>>,
}

/// A key on P-256 in locked memory.
#[derive(Clone)]
pub struct HostTlsKey {
    key: Arc<Locked<SigningKey>>,
    /// The public point, uncompressed.
    point: [u8; 65],
}

/// Why there is no key for TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerKeyError {
    /// Files that do not belong together, or hold something else.
    #[error("certificate and key for TLS cannot be used")]
    Files(#[source] Error),
    /// No locked memory.
    #[error("the key for TLS cannot be kept")]
    Memory(#[from] NotLocked),
    /// A file without what it should have.
    #[error("no {what} in PEM can be read in it: {reason}")]
    Pem {
        /// What it should have.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
}

impl ServerKey {
    /// Uses this key from the next handshake on. Its certificate comes first, then those above it.
    pub fn install(&self, key: HostTlsKey, chain: Vec<CertificateDer<'static>>) {
        self.put(CertifiedKey::new(chain, Arc::new(key)));
    }

    /// The same with a certificate and those above it, and its key, in PEM.
    pub fn install_pem(
        &self,
        certificates: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<(), ServerKeyError> {
        let unread = |what| {
            move |error: rustls_pki_types::pem::Error| ServerKeyError::Pem {
                what,
                reason: error.to_string(),
            }
        };
        let chain = CertificateDer::pem_slice_iter(certificates);
        let chain: Vec<_> = chain
            .collect::<Result<_, _>>()
            .map_err(unread("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(unread("private key"))?;
        let certified = CertifiedKey::from_der(chain, key, provider);
        self.put(certified.map_err(ServerKeyError::Files)?);
        Ok(())
    }

    fn put(&self, key: CertifiedKey) {
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        *present = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for ServerKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let present = self.present.read();
        present.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl HostTlsKey {
    /// A new key.
    pub fn generate() -> Result<Self, ServerKeyError> {
        let random = SystemRandom::new();
        let make = || {
            let mut scalar = Zeroizing::new([0; 32]);
            // One in 2³² is no scalar of the curve.
            loop {
                random
                    .fill(scalar.as_mut())
                    .map_err(|_| ServerKeyError::Random)?;
                if let Ok(key) = SigningKey::from_slice(scalar.as_ref()) {
                    return Ok::<_, ServerKeyError>(key);
                }
            }
        };
        let key = Locked::try_new(make)??;
        let mut point = [0; 65];
        let public = key.verifying_key().to_encoded_point(false);
        for (to, from) in point.iter_mut().zip(public.as_bytes()) {
            *to = *from;
        }
        Ok(Self {
            key: Arc::new(key),
            point,
        })
    }
}

impl rcgen::PublicKeyData for HostTlsKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl sign::SigningKey for HostTlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
        offered
            .contains(&scheme)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for HostTlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signed: Result<DerSignature, _> = self.key.try_sign(message);
        let signature = signed.map_err(|_| Error::General("no signature".to_owned()))?;
        Ok(signature.as_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

impl fmt::Debug for HostTlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostTlsKey")
    }
}
