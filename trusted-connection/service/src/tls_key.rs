//! The key of the service's TLS connections, which its vRoT holds: rustls asks for a signature, the TPM
//! makes it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::KeyStatement;
use cert_chain::layout::{NvIndex, TLS_KEY_HANDLE};
use cert_chain::{Digest32, PublicArea, TlsKey};
use printable::WithCauses;
use rustls::SignatureScheme as TlsScheme;
use rustls::sign::{Signer, SigningKey};
use rustls::{OtherError, SignatureAlgorithm};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::attester::tss::{self, HostsKey, KeyInUse};
use crate::attester::{AttesterError, EsysTpm, TpmAddress, signing};

/// Where the host put the key.
const TLS_KEY: HostsKey = HostsKey {
    handle: TLS_KEY_HANDLE,
    template: NvIndex::TLS_TEMPLATE,
};

/// The key, used over a connection to the TPM of its own: a handshake waits neither for a quote nor for
/// the host.
#[derive(Clone)]
pub struct TpmTlsKey {
    tpm: Arc<Mutex<KeyInUse>>,
    public: SubjectPublicKeyInfoDer<'static>,
}

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsKeyError {
    /// There is none, or the TPM cannot be asked.
    #[error(
        "the vRoT has no key for TLS at 0x{:08x}, or it cannot be used: vRoTs made by older managers \
         have none, and are given none later",
        TLS_KEY.handle
    )]
    Tpm(#[source] AttesterError),
    /// A key of another kind lies there.
    #[error("the key at 0x{:08x} is none for TLS", TLS_KEY.handle)]
    Kind(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The TPM made no signature.
#[derive(Debug, thiserror::Error)]
#[error("the TPM made no signature for a handshake: {}", WithCauses(.0))]
struct NoSignature(AttesterError);

impl TpmTlsKey {
    /// Finds the key in this TPM.
    pub fn open(tpm: &TpmAddress) -> Result<Self, TlsKeyError> {
        let mut tpm = KeyInUse::open(tpm, TLS_KEY).map_err(TlsKeyError::Tpm)?;
        let public = tpm.using(tss::public_of).map_err(TlsKeyError::Tpm)?;
        let area = PublicArea::parse(&public).map_err(|error| TlsKeyError::Kind(error.into()))?;
        let public = TlsKey::try_from(area).map_err(|error| TlsKeyError::Kind(error.into()))?;
        Ok(Self {
            tpm: Arc::new(Mutex::new(tpm)),
            public: public.subject_public_key_info().into(),
        })
    }

    /// The key's certificate as it is now, and that of the host above it; none as long as the host has
    /// certified the key not yet.
    pub fn chain(&self) -> Result<Option<Vec<CertificateDer<'static>>>, AttesterError> {
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        match tss::chain(tpm.context(), NvIndex::TLS_CERTIFICATE) {
            Ok(chain) => Ok(Some(chain.into_iter().map(Into::into).collect())),
            Err(error) if tss::is_empty_index(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the vIK says about the key.
    pub fn certified_by(tpm: &mut EsysTpm) -> Result<KeyStatement, TlsKeyError> {
        tpm.certify(TLS_KEY).map_err(TlsKeyError::Tpm)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AttesterError> {
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = Digest32::of(message);
        let signature = tpm.using(|context, key| signing::sign(context, key, &hash))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

impl fmt::Debug for TpmTlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TpmTlsKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl SigningKey for TpmTlsKey {
    fn choose_scheme(&self, offered: &[TlsScheme]) -> Option<Box<dyn Signer>> {
        let known = offered.contains(&TlsScheme::ECDSA_NISTP256_SHA256);
        known.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.public.as_ref()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TpmTlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let sign = || {
            TpmTlsKey::sign(self, message)
                .map_err(|error| rustls::Error::Other(OtherError(Arc::new(NoSignature(error)))))
        };
        // The other connections of this thread do not wait for the TPM. How many threads wait is bounded
        // by the number of handshakes that are worked on at a time.
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(sign),
            _ => sign(),
        }
    }

    fn scheme(&self) -> TlsScheme {
        TlsScheme::ECDSA_NISTP256_SHA256
    }
}
