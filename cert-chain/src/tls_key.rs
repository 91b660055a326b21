//! Keys that authenticate a vRoT's end of a TLS connection.

use crate::attestation_key::{AttestationKeyError, Restricted, check_signing_key};
use crate::public_area::{PublicArea, public_area_of};

/// A public area with everything a TLS key of a TPM must have: ECDSA with SHA-256 on P-256, made in
/// and bound to one TPM, and not restricted, so that it signs what TLS needs signed.
///
/// A restricted key is refused: it is an attestation key, and a key has one purpose. So is one with a
/// policy: as a [data key](crate::DataKey) has it. That such a TPM
/// exists, and which one it is, a statement by that TPM's attestation key says (`TPM2_Certify`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsKey(PublicArea);

public_area_of!(TlsKey);

impl TryFrom<PublicArea> for TlsKey {
    type Error = AttestationKeyError;

    fn try_from(area: PublicArea) -> Result<Self, Self::Error> {
        check_signing_key(&area, Restricted::No)?;
        if area.auth_policy().is_empty() {
            Ok(Self(area))
        } else {
            Err(AttestationKeyError::OtherPurpose)
        }
    }
}
