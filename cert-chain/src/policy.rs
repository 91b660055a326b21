//! Policy digests (TPM 2.0 Part 3 §23), computed without a TPM: a policy can be checked, and
//! the next software version approved, where no TPM is at hand.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::identifiers::Digest32;
use crate::name::TpmName;

/// A selection of PCRs in the SHA-256 bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PcrSelection(u32);

/// A PCR number that no PC-client TPM has.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no PCR {pcr}: PCRs are numbered 0 to 23")]
pub struct PcrSelectionError {
    /// The number given.
    pub pcr: u8,
}

/// The values of selected PCRs of the SHA-256 bank, by number.
pub type PcrValues = BTreeMap<u8, Digest32>;

/// The policy reference of a host's `PolicyAuthorize`: an approval for another purpose by the same
/// operator's key is none for this one (TPM 2.0 Part 3 §23.16).
pub const HOST_POLICY_REF: &[u8] = b"vrot-host-policy";

/// PCRs of a PC-client TPM (TCG PC Client Platform TPM Profile).
const PCR_COUNT: u8 = 24;
/// `TPM_CC_PolicyPCR`
const POLICY_PCR: u32 = 0x0000_017f;
/// `TPM_CC_PolicyAuthorize`
const POLICY_AUTHORIZE: u32 = 0x0000_016a;
/// `TPM_ALG_SHA256`
const SHA256: u16 = 0x000b;
/// A policy session with SHA-256 starts from this digest.
const START: [u8; 32] = [0; 32];

impl PcrSelection {
    /// Selects these PCRs.
    pub fn new(pcrs: impl IntoIterator<Item = u8>) -> Result<Self, PcrSelectionError> {
        let mut bits = 0;
        for pcr in pcrs {
            if pcr >= PCR_COUNT {
                return Err(PcrSelectionError { pcr });
            }
            bits |= 1 << pcr;
        }
        Ok(Self(bits))
    }

    /// The selected PCRs in rising order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |pcr| self.0 & (1 << pcr) != 0)
    }

    /// Whether the PCR is selected.
    pub fn contains(self, pcr: u8) -> bool {
        pcr < PCR_COUNT && self.0 & (1 << pcr) != 0
    }

    /// As `TPML_PCR_SELECTION` with one bank and three octets of bits, the form in which TPMs
    /// and their tools write it.
    pub fn to_bytes(self) -> Vec<u8> {
        let [low, middle, high, _] = self.0.to_le_bytes();
        let mut bytes = 1u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&SHA256.to_be_bytes());
        bytes.extend_from_slice(&[3, low, middle, high]);
        bytes
    }
}

/// The digest of a policy that only `TPM2_PolicyPCR` contributes to: satisfied while the PCRs
/// have exactly these values. The selection is the set of numbers in `values`.
pub fn pcr_policy_digest(values: &PcrValues) -> Result<Digest32, PcrSelectionError> {
    let selection = PcrSelection::new(values.keys().copied())?;
    let mut concatenation = Sha256::new();
    for value in values.values() {
        concatenation.update(value.as_bytes());
    }
    Ok(extend(
        &START,
        POLICY_PCR,
        &[&selection.to_bytes(), &concatenation.finalize()],
    ))
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
