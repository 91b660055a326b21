//! Policy digests (TPM 2.0 Part 3 §23), computed without a TPM: a policy can be checked, and
//! the next software version approved, where no TPM is at hand.

use sha2::{Digest, Sha256};

use crate::digest::Digest32;
use crate::name::TpmName;
use crate::pcr::PcrValues;

/// The policy reference of a host's `PolicyAuthorize`: an approval for another purpose by the same
/// operator's key is none for this one (TPM 2.0 Part 3 §23.16).
pub const HOST_POLICY_REF: &[u8] = b"vrot-host-policy";
/// The policy reference of data that a VM seals to approved boots.
pub const DATA_POLICY_REF: &[u8] = b"vrot-sealed-data-policy";

/// `TPM_CC_PolicyPCR`
const POLICY_PCR: u32 = 0x0000_017f;
/// `TPM_CC_PolicyAuthorize`
const POLICY_AUTHORIZE: u32 = 0x0000_016a;
/// A policy session with SHA-256 starts from this digest.
const START: [u8; 32] = [0; 32];

/// The digest of a policy that only `TPM2_PolicyPCR` contributes to: satisfied while the PCRs
/// have exactly these values. It covers the bank, which the selection names.
pub fn pcr_policy_digest(values: &PcrValues) -> Digest32 {
    extend(
        &START,
        POLICY_PCR,
        &[
            &values.selection().to_bytes(values.bank()),
            values.digest().as_bytes(),
        ],
    )
}

/// The digest of a policy that is one `TPM2_PolicyAuthorize`: whatever policy the holder of
/// the key named `key` approves for `policy_ref`, now or later, satisfies it.
pub fn authorize_digest(key: &TpmName, policy_ref: &[u8]) -> Digest32 {
    // PolicyUpdate() of TPM 2.0 Part 3 §23.2.3: command code and name, then the reference.
    let named = extend(&START, POLICY_AUTHORIZE, &[key.as_bytes()]);
    Digest32::new(
        Sha256::new()
            .chain_update(named.as_bytes())
            .chain_update(policy_ref)
            .finalize()
            .into(),
    )
}

/// What the approving key signs so that `TPM2_PolicyAuthorize` accepts `approved`
/// (`aHash` of TPM 2.0 Part 3 §23.16). Sign this digest as it is, do not hash it again.
pub fn approval_digest(approved: &Digest32, policy_ref: &[u8]) -> Digest32 {
    Digest32::new(
        Sha256::new()
            .chain_update(approved.as_bytes())
            .chain_update(policy_ref)
            .finalize()
            .into(),
    )
}

fn extend(old: &[u8; 32], command: u32, arguments: &[&[u8]]) -> Digest32 {
    let mut hash = Sha256::new();
    hash.update(old);
    hash.update(command.to_be_bytes());
    for argument in arguments {
        hash.update(argument);
    }
    Digest32::new(hash.finalize().into())
}
