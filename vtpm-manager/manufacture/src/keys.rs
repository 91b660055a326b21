//! The keys of a vRoT, each made from its template.

use cert_chain::layout::{TLS_KEY_HANDLE, VIK_HANDLE};
use cert_chain::template::{EccTemplate, Purpose, RESIDENT};
use cert_chain::{AttestationKey, EndorsementKey, ObjectAttributes, PublicArea, TlsKey};

use super::command::Tpm;
use super::error::ManufactureError;

/// The template of every vIK: a restricted P-256 key that signs with ECDSA and SHA-256. Its
/// `unique` field is empty, as `tpm2_createprimary` leaves it.
pub fn vik_template() -> Vec<u8> {
    signing_template(USED_BY_ANYBODY.with(ObjectAttributes::RESTRICTED))
}

/// The template of every TLS key: as that of the vIK, but not restricted, because what TLS signs is
/// not what a TPM formed.
pub fn tls_template() -> Vec<u8> {
    signing_template(USED_BY_ANYBODY)
}

/// With an empty authorization value, which nobody needs to guess.
const USED_BY_ANYBODY: ObjectAttributes = RESIDENT
    .with(ObjectAttributes::USER_WITH_AUTH)
    .with(ObjectAttributes::NO_DA)
    .with(ObjectAttributes::SIGN);

fn signing_template(attributes: ObjectAttributes) -> Vec<u8> {
    EccTemplate {
        attributes,
        auth_policy: &[],
        purpose: Purpose::Signing,
        unique: [&[], &[]],
    }
    .to_bytes()
}

/// What happens to a key after it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Persistent,
    Nowhere,
}

pub(super) fn vik(tpm: &mut Tpm<'_>, keep: Keep) -> Result<AttestationKey, ManufactureError> {
    let handle = (keep == Keep::Persistent).then_some(VIK_HANDLE);
    let public = made(tpm, &vik_template(), handle)?;
    AttestationKey::try_from(public).map_err(ManufactureError::AttestationKey)
}

/// The TLS key, kept.
pub(super) fn tls_key(tpm: &mut Tpm<'_>) -> Result<TlsKey, ManufactureError> {
    let public = made(tpm, &tls_template(), Some(TLS_KEY_HANDLE))?;
    TlsKey::try_from(public).map_err(ManufactureError::TlsKey)
}

pub(super) fn endorsement_key(
    tpm: &mut Tpm<'_>,
    template: &[u8],
) -> Result<EndorsementKey, ManufactureError> {
    let public = made(tpm, template, None)?;
    EndorsementKey::try_from(public).map_err(ManufactureError::EndorsementKey)
}

/// Makes a key, and keeps it at this handle, if one is given.
fn made(
    tpm: &mut Tpm<'_>,
    template: &[u8],
    persistent: Option<u32>,
) -> Result<PublicArea, ManufactureError> {
    let primary = tpm.create_primary(template)?;
    let kept = persistent.map(|handle| tpm.keep(primary.handle, handle));
    tpm.flush(primary.handle)?;
    kept.transpose()?;
    Ok(primary.public)
}
