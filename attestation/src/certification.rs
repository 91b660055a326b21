//! Statements about a TLS key by the attestation key of the same TPM: `TPMS_ATTEST` of type certify
//! (TPM 2.0 Part 2 §10.12.3), made by `TPM2_Certify`.
//!
//! A certificate alone would not do: whoever had it issued might have had the key elsewhere. What the
//! TPM certifies is loaded in that TPM, and the key's attributes say that it can be nowhere else.

use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{AttestationKey, Digest32, PublicArea, TlsKey};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use tpm2_protocol::data::{TpmsAttest, TpmuAttest};
use tpm2_protocol::{TpmError, TpmUnmarshal};

use crate::qualifying::encoded;
use crate::quote::{QuoteError, verify_signature};

/// A TLS key, and what its TPM says about it. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TlsKeyStatement {
    /// `TPMT_PUBLIC` of the key.
    #[n(1)]
    pub public: ByteVec,
    /// `TPMS_ATTEST` of its certification.
    #[n(2)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the vIK.
    #[n(3)]
    pub signature: ByteVec,
}

/// Why a statement about a TLS key is worth nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificationError {
    /// The key cannot be read.
    #[error("the key cannot be read")]
    Key(#[source] PublicAreaError),
    /// The key has not what a TLS key must have.
    #[error("the key is none for TLS in a TPM")]
    Attributes(#[source] AttestationKeyError),
    /// The signature is not the attestation key's.
    #[error("the statement's signature is not that of the vRoT's identity key")]
    Signature(#[source] QuoteError),
    /// The statement cannot be read.
    #[error("the statement that the TPM signed is malformed")]
    Malformed(#[source] TpmError),
    /// The TPM signed something else.
    #[error("the TPM signed a statement that certifies no key")]
    NotACertification,
    /// The TPM certified another key.
    #[error("the TPM certified another key")]
    OtherKey,
}

impl TlsKeyStatement {
    /// SHA-256 over the statement, which the VM's quote covers.
    pub fn digest(&self) -> Digest32 {
        Digest32::of(&encoded(|encoder| encoder.encode(self)?.ok()))
    }

    /// Verifies that the TPM with `attestation_key` certified this key, and that the key is one for
    /// TLS that lives in that TPM alone.
    pub fn verify(&self, attestation_key: &AttestationKey) -> Result<TlsKey, CertificationError> {
        let area = PublicArea::parse(&self.public).map_err(CertificationError::Key)?;
        let key = TlsKey::try_from(area).map_err(CertificationError::Attributes)?;
        let attest = verify_signature(&self.attest, &self.signature, attestation_key)
            .map_err(CertificationError::Signature)?;
        let (attest, rest) =
            TpmsAttest::unmarshal(attest).map_err(CertificationError::Malformed)?;
        let TpmuAttest::Certify(certified) = &attest.attested else {
            return Err(CertificationError::NotACertification);
        };
        if !rest.is_empty() {
            return Err(CertificationError::NotACertification);
        }
        let name: &[u8] = certified.name.as_ref();
        if name == key.name().as_bytes() {
            Ok(key)
        } else {
            Err(CertificationError::OtherKey)
        }
    }
}
