//! The keys of a vRoT, each made from its template.

use cert_chain::layout::VIK_HANDLE;
use cert_chain::template::{EccTemplate, Purpose, RESIDENT};
use cert_chain::{AttestationKey, EndorsementKey, ObjectAttributes};

use super::command::Tpm;
use super::error::ManufactureError;

/// The template of every vIK: a restricted P-256 key that signs with ECDSA and SHA-256. Its
/// `unique` field is empty, as `tpm2_createprimary` leaves it.
pub fn vik_template() -> Vec<u8> {
    EccTemplate {
        attributes: RESIDENT
            .with(ObjectAttributes::USER_WITH_AUTH)
            .with(ObjectAttributes::NO_DA)
            .with(ObjectAttributes::RESTRICTED)
            .with(ObjectAttributes::SIGN),
        auth_policy: &[],
        purpose: Purpose::Signing,
        unique: [&[], &[]],
    }
    .to_bytes()
}

/// What happens to the vIK after it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Persistent,
    Nowhere,
}

pub(super) fn vik(tpm: &mut Tpm<'_>, keep: Keep) -> Result<AttestationKey, ManufactureError> {
    let primary = tpm.create_primary(&vik_template())?;
    let kept = match keep {
        Keep::Persistent => tpm.keep(primary.handle, VIK_HANDLE),
        Keep::Nowhere => Ok(()),
    };
    tpm.flush(primary.handle)?;
    kept?;
    AttestationKey::try_from(primary.public).map_err(ManufactureError::AttestationKey)
}

pub(super) fn endorsement_key(
    tpm: &mut Tpm<'_>,
    template: &[u8],
) -> Result<EndorsementKey, ManufactureError> {
    let primary = tpm.create_primary(template)?;
    tpm.flush(primary.handle)?;
    EndorsementKey::try_from(primary.public).map_err(ManufactureError::EndorsementKey)
}
