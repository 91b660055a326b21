//! Endorsement keys: they prove residence in one TPM and open credentials. They sign nothing.

use crate::digest::Digest32;
use crate::name::NameAlgorithm;
use crate::public_area::{
    ChildProtection, KeyParameters, KeyScheme, ObjectAttributes, PublicArea, public_area_of,
};

/// A public area with the shape of the TCG's default endorsement keys: restricted storage key,
/// RSA-2048 or P-256, SHA-256, AES-128-CFB (TCG EK Credential Profile 2.5, templates L-1, L-2,
/// H-1 and H-2).
///
/// It does not establish that a real TPM holds the key: its certificate does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey(PublicArea);

/// The attribute or parameter that rules a key out as endorsement key.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndorsementKeyError {
    /// Not RSA-2048 and not P-256.
    #[error("the key is neither RSA-2048 nor NIST P-256")]
    Algorithm,
    /// The name is not a SHA-256 name.
    #[error("the key's name algorithm is not SHA-256")]
    NameAlgorithm,
    /// No policy, where the templates have one.
    #[error("the key has no authorization policy of a TCG endorsement key template")]
    NoPolicy,
    /// `decrypt` is clear.
    #[error("the key cannot decrypt: an endorsement key is a storage key")]
    NotDecrypting,
    /// `fixedParent` is clear.
    #[error("the key is not fixedParent: it could be moved to another parent")]
    NotFixedParent,
    /// `fixedTPM` is clear.
    #[error("the key is not fixedTPM: it could be duplicated to another TPM")]
    NotFixedTpm,
    /// `restricted` is clear.
    #[error("the key is not restricted: it would decrypt anything for anyone")]
    NotRestricted,
    /// `sensitiveDataOrigin` is clear.
    #[error("the key was not made by the TPM (sensitiveDataOrigin is clear)")]
    NotSensitiveDataOrigin,
    /// Children are not protected by AES-128 in CFB mode.
    #[error("the key does not protect its children with AES-128-CFB")]
    Protection,
    /// A fixed scheme, which no storage key has.
    #[error("the key is limited to a scheme, which no storage key is")]
    Scheme,
    /// `sign` is set.
    #[error("the key may sign: an endorsement key must not")]
    Signs,
}

impl EndorsementKey {
    /// SHA-256 value of the public key alone: of the point, or of the `RSAPublicKey` in DER.
    pub fn key_digest(&self) -> Digest32 {
        Digest32::of(self.0.public_key_bytes())
    }
}

public_area_of!(EndorsementKey);

impl TryFrom<PublicArea> for EndorsementKey {
    type Error = EndorsementKeyError;

    fn try_from(area: PublicArea) -> Result<Self, Self::Error> {
        use EndorsementKeyError as E;
        let attributes = area.attributes();
        let has = |attribute| attributes.contains(attribute);

        if has(ObjectAttributes::SIGN) {
            return Err(E::Signs);
        }
        for (attribute, missing) in [
            (ObjectAttributes::DECRYPT, E::NotDecrypting),
            (ObjectAttributes::RESTRICTED, E::NotRestricted),
            (ObjectAttributes::FIXED_TPM, E::NotFixedTpm),
            (ObjectAttributes::FIXED_PARENT, E::NotFixedParent),
            (
                ObjectAttributes::SENSITIVE_DATA_ORIGIN,
                E::NotSensitiveDataOrigin,
            ),
        ] {
            if !has(attribute) {
                return Err(missing);
            }
        }
        if area.name_algorithm() != NameAlgorithm::Sha256 {
            return Err(E::NameAlgorithm);
        }
        let (scheme, protection) = match *area.parameters() {
            KeyParameters::Rsa {
                bits: 2048,
                scheme,
                protection,
            }
            | KeyParameters::P256 { scheme, protection } => (scheme, protection),
            KeyParameters::Rsa { .. } => return Err(E::Algorithm),
        };
        if scheme != KeyScheme::Any {
            return Err(E::Scheme);
        }
        if protection != (ChildProtection::AesCfb { bits: 128 }) {
            return Err(E::Protection);
        }
        if area.auth_policy().is_empty() {
            return Err(E::NoPolicy);
        }
        Ok(Self(area))
    }
}
