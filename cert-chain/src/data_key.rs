//! Keys that sign data: what a VM or a device measured, for whoever reads it later.

use crate::attestation_key::{AttestationKeyError, Restricted, check_signing_key};
use crate::public_area::{PublicArea, public_area_of};
use crate::template::DATA_KEY_POLICY;

/// A public area with everything a data key of a TPM must have: ECDSA with SHA-256 on P-256, made in and
/// bound to one TPM, not restricted, and with the [mark](DATA_KEY_POLICY) of its purpose.
///
/// Whoever rules a VM can have its vIK certify any key of that TPM. So the purpose stands in the public area
/// itself, of which a key has one for its life: a key for TLS has no policy, and one with this is for data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKey(PublicArea);

public_area_of!(DataKey);

impl TryFrom<PublicArea> for DataKey {
    type Error = AttestationKeyError;

    fn try_from(area: PublicArea) -> Result<Self, Self::Error> {
        check_signing_key(&area, Restricted::No)?;
        if area.auth_policy() == DATA_KEY_POLICY {
            Ok(Self(area))
        } else {
            Err(AttestationKeyError::OtherPurpose)
        }
    }
}
