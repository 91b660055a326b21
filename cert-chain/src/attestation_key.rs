//! Keys that may sign evidence: a host IK or a vIK.

use crate::name::NameAlgorithm;
use crate::public_area::{
    ChildProtection, KeyParameters, KeyScheme, ObjectAttributes, PublicArea, public_area_of,
};

/// A public area with everything an attestation key must have: ECDSA with SHA-256 on P-256,
/// made in and bound to one TPM, restricted to signing what that TPM formed itself.
///
/// It does not establish that such a TPM exists: a certificate or credential activation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationKey(PublicArea);

/// The attribute or parameter that rules a key out as attestation key.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttestationKeyError {
    /// `decrypt` is set: storage keys, and thus every EK, end here.
    #[error("the key may decrypt: a storage or endorsement key is no attestation key")]
    Decrypts,
    /// Not ECDSA with SHA-256.
    #[error("the key's scheme is not ECDSA with SHA-256")]
    Scheme,
    /// Not NIST P-256.
    #[error("the key is not on NIST P-256")]
    NotP256,
    /// The name is not a SHA-256 name.
    #[error("the key's name algorithm is not SHA-256")]
    NameAlgorithm,
    /// `fixedParent` is clear.
    #[error("the key is not fixedParent: it could be moved to another parent")]
    NotFixedParent,
    /// `fixedTPM` is clear.
    #[error("the key is not fixedTPM: it could be duplicated to another TPM")]
    NotFixedTpm,
    /// Its policy says what it was made for, and that is something else.
    #[error("the key was made for another purpose: its policy is not that of keys for this one")]
    OtherPurpose,
    /// `userWithAuth` or `noDA` is set.
    #[error(
        "the key is not confined to a counted PIN (userWithAuth or noDA is set): guesses would be free"
    )]
    NotGated,
    /// `restricted` is clear.
    #[error("the key is not restricted: it would sign a forged quote")]
    NotRestricted,
    /// `restricted` is set.
    #[error("the key is restricted: it is an attestation key, which signs nothing else")]
    Restricted,
    /// `sensitiveDataOrigin` is clear.
    #[error("the key was not made by the TPM (sensitiveDataOrigin is clear)")]
    NotSensitiveDataOrigin,
    /// `sign` is clear.
    #[error("the key cannot sign")]
    NotSigning,
    /// A symmetric algorithm is set although the key has no children.
    #[error("the key has a storage key's symmetric algorithm")]
    ProtectsChildren,
    /// `x509sign` is set.
    #[error("the key is x509sign: it cannot sign quotes")]
    X509Sign,
}

/// `TPM_ALG_ECDSA`
const ECDSA: u16 = 0x0018;
/// `TPM_ALG_SHA256`
const SHA256: u16 = 0x000b;

public_area_of!(AttestationKey);

impl TryFrom<PublicArea> for AttestationKey {
    type Error = AttestationKeyError;

    fn try_from(area: PublicArea) -> Result<Self, Self::Error> {
        // The most telling answer first: an EK is refused as a decrypting key.
        check_signing_key(&area, Restricted::Yes)?;
        Ok(Self(area))
    }
}

/// Whether a key has to sign what its TPM formed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restricted {
    /// It does: an attestation key.
    Yes,
    /// It must not be confined to that.
    No,
}

/// What every signing key here has: ECDSA with SHA-256 on P-256, made in and bound to one TPM.
pub(crate) fn check_signing_key(
    area: &PublicArea,
    restricted: Restricted,
) -> Result<(), AttestationKeyError> {
    use AttestationKeyError as E;
    let attributes = area.attributes();
    let has = |attribute| attributes.contains(attribute);
    if has(ObjectAttributes::DECRYPT) {
        return Err(E::Decrypts);
    }
    if !has(ObjectAttributes::SIGN) {
        return Err(E::NotSigning);
    }
    match (restricted, has(ObjectAttributes::RESTRICTED)) {
        (Restricted::Yes, true) | (Restricted::No, false) => {}
        (Restricted::Yes, false) => return Err(E::NotRestricted),
        (Restricted::No, true) => return Err(E::Restricted),
    }
    for (attribute, missing) in [
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
    if has(ObjectAttributes::X509_SIGN) {
        return Err(E::X509Sign);
    }
    if area.name_algorithm() != NameAlgorithm::Sha256 {
        return Err(E::NameAlgorithm);
    }
    let KeyParameters::P256 { scheme, protection } = *area.parameters() else {
        return Err(E::NotP256);
    };
    let ecdsa_sha256 = KeyScheme::Fixed {
        scheme: ECDSA,
        hash: Some(SHA256),
    };
    if scheme != ecdsa_sha256 {
        return Err(E::Scheme);
    }
    if protection != ChildProtection::None {
        return Err(E::ProtectsChildren);
    }
    Ok(())
}
