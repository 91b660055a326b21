//! Statements about a key for TLS, for signing data or for confirmations, by the attestation key of the same
//! TPM: `TPMS_ATTEST` of type certify (TPM 2.0 Part 2 §10.12.3), made by `TPM2_Certify`.
//!
//! A certificate alone would not do: whoever had it issued might have had the key elsewhere. What the
//! TPM certifies is loaded in that TPM, and the key's attributes say that it can be nowhere else.

use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{AttestationKey, ConfirmationKey, DataKey, Digest32, PublicArea, TlsKey, TpmName};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use tpm2_protocol::data::{TpmsAttest, TpmuAttest};
use tpm2_protocol::{TpmError, TpmUnmarshal};

use crate::qualifying::{confirmation_key_qualifying_data, data_key_qualifying_data, encoded};
use crate::quote::{QuoteError, verify_signature};

/// A key, and what its TPM says about it. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct KeyStatement {
    /// `TPMT_PUBLIC` of the key.
    #[n(1)]
    pub public: ByteVec,
    /// `TPMS_ATTEST` of its certification.
    #[n(2)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the vIK, or a device's identity key.
    #[n(3)]
    pub signature: ByteVec,
}

/// A kind of key that a TPM certifies for one purpose.
pub trait CertifiedKey: TryFrom<PublicArea, Error = AttestationKeyError> {
    /// What the TPM has to say beside the key: another value for each purpose.
    fn purpose() -> Vec<u8>;
}

/// Why a statement about a key is worth nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificationError {
    /// The key cannot be read.
    #[error("the key cannot be read")]
    Key(#[source] PublicAreaError),
    /// The key has not what a key for this purpose must have.
    #[error("the key is none for this purpose in a TPM")]
    Attributes(#[source] AttestationKeyError),
    /// The signature is not the attestation key's.
    #[error("the statement's signature is not that of the TPM's identity key")]
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
    /// It was made for something else.
    #[error("the statement was made for another purpose")]
    OtherPurpose,
}

impl CertifiedKey for TlsKey {
    fn purpose() -> Vec<u8> {
        Vec::new()
    }
}

impl CertifiedKey for DataKey {
    fn purpose() -> Vec<u8> {
        data_key_qualifying_data().as_bytes().to_vec()
    }
}

impl CertifiedKey for ConfirmationKey {
    fn purpose() -> Vec<u8> {
        confirmation_key_qualifying_data().as_bytes().to_vec()
    }
}

impl KeyStatement {
    /// SHA-256 over the statement, which the VM's quote covers if it is about a key for TLS.
    pub fn digest(&self) -> Digest32 {
        Digest32::of(&encoded(|encoder| encoder.encode(self)?.ok()))
    }

    /// Verifies that the TPM with `attestation_key` certified this key, for the purpose of `K`, and that the
    /// key is one of that kind, which lives in that TPM alone.
    pub fn verify<K: CertifiedKey>(
        &self,
        attestation_key: &AttestationKey,
    ) -> Result<K, CertificationError> {
        let area = PublicArea::parse(&self.public).map_err(CertificationError::Key)?;
        let name = area.name();
        let key = K::try_from(area).map_err(CertificationError::Attributes)?;
        self.check(&name, &K::purpose(), attestation_key)?;
        Ok(key)
    }

    /// Checks that the TPM certified the key with this name, for this purpose.
    fn check(
        &self,
        key: &TpmName,
        purpose: &[u8],
        attestation_key: &AttestationKey,
    ) -> Result<(), CertificationError> {
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
        if name != key.as_bytes() {
            return Err(CertificationError::OtherKey);
        }
        let said: &[u8] = attest.extra_data.as_ref();
        match said == purpose {
            true => Ok(()),
            false => Err(CertificationError::OtherPurpose),
        }
    }
}
