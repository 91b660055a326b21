//! Keys with which a person confirms what a device's trusted display showed.

use crate::attestation_key::{AttestationKeyError, Restricted, check_signing_key};
use crate::digest::Digest32;
use crate::public_area::{ObjectAttributes, PublicArea, public_area_of};

/// A public area with everything a confirmation key of a TPM must have: ECDSA with SHA-256 on P-256, made in
/// and bound to one TPM, not restricted, with the [policy](ConfirmationKey::policy) of its purpose; and the
/// TPM counts wrong PINs, after some of which it is locked.
///
/// Its authorization value is the person's PIN. The public area shows that the value has to be known, not
/// what it is: a key whose PIN is empty looks the same. So a verifier accepts keys that were registered for a
/// person, not every key with these attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmationKey(PublicArea);

/// `TPM_CC_PolicyAuthValue`
const POLICY_AUTH_VALUE: u32 = 0x0000_016b;
/// `TPM_CC_PolicyOR`
const POLICY_OR: u32 = 0x0000_0171;

impl ConfirmationKey {
    /// The two branches of the policy. The first is satisfied by whoever knows the authorization value
    /// (`TPM2_PolicyAuthValue`, TPM 2.0 Part 3 §23.13). The second marks the purpose: no policy has this
    /// digest, so nobody satisfies it, and no other key here has a policy with it.
    pub fn policy_branches() -> [Digest32; 2] {
        let auth_value = [&[0; 32][..], &POLICY_AUTH_VALUE.to_be_bytes()].concat();
        [
            Digest32::of(&auth_value),
            Digest32::of(b"vrot confirmation key v1"),
        ]
    }

    /// The policy: either branch (`TPM2_PolicyOR`, TPM 2.0 Part 3 §23.6).
    pub fn policy() -> Digest32 {
        let [auth_value, mark] = Self::policy_branches();
        Digest32::of(
            &[
                &[0; 32][..],
                &POLICY_OR.to_be_bytes(),
                auth_value.as_bytes(),
                mark.as_bytes(),
            ]
            .concat(),
        )
    }
}

public_area_of!(ConfirmationKey);

impl TryFrom<PublicArea> for ConfirmationKey {
    type Error = AttestationKeyError;

    fn try_from(area: PublicArea) -> Result<Self, Self::Error> {
        check_signing_key(&area, Restricted::No)?;
        if area.auth_policy() != Self::policy().as_bytes() {
            return Err(AttestationKeyError::OtherPurpose);
        }
        let has = |attribute| area.attributes().contains(attribute);
        // With either, something else than the policy alone decides, or guesses are free.
        if has(ObjectAttributes::USER_WITH_AUTH) || has(ObjectAttributes::NO_DA) {
            return Err(AttestationKeyError::NotGated);
        }
        Ok(Self(area))
    }
}
