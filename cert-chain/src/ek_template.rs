//! The TCG's templates of endorsement keys (EK Credential Profile 2.5 annex B).
//!
//! A key's certificate vouches for the public key alone. Attributes and policy, and so the key's
//! name, are the template's: a TPM that is asked for the key makes it from there. Whoever states
//! other ones for a certified public key states a key that no TPM has.

use tpm2_protocol::data::{TpmtPublic, TpmuPublicId, TpmuPublicParms};
use tpm2_protocol::{TpmSized, TpmUnmarshal};

use crate::public_area::PublicArea;

/// A template of the TCG's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkTemplate {
    /// RSA-2048, low range (annex B.3.3).
    L1,
    /// NIST P-256, low range (annex B.3.4).
    L2,
    /// RSA-2048, high range (annex B.4.4).
    H1,
    /// NIST P-256, high range (annex B.4.5).
    H2,
}

/// `fixedTPM | fixedParent | sensitiveDataOrigin | adminWithPolicy | restricted | decrypt`
const LOW_RANGE: u32 = 0x0003_00b2;
/// The same, and `userWithAuth`.
const HIGH_RANGE: u32 = 0x0003_00f2;

/// PolicyA (annex B.6.2): `TPM2_PolicySecret` with the endorsement hierarchy.
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// PolicyB (annex B.6.3): PolicyA, or what the owner writes into an NV index.
const POLICY_B: [u8; 32] = [
    0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3,
    0xa3, 0x85, 0xd4, 0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
];

/// AES-128-CFB and no scheme, then 2048 bits and the default exponent.
const RSA_2048: &[u8] = &[
    0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00,
];
/// AES-128-CFB and no scheme, then the curve and no key derivation.
const P256: &[u8] = &[
    0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10,
];

impl EkTemplate {
    const ALL: [Self; 4] = [Self::L1, Self::L2, Self::H1, Self::H2];

    /// The template from which a TPM made this key; `None` if it is none of the TCG's.
    pub fn of(area: &PublicArea) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|template| area.as_bytes().starts_with(&template.start()))
    }

    /// The `TPMT_PUBLIC` from which a TPM makes the key: `unique` is as many zeros as the key has
    /// bytes (EK Credential Profile 2.5 annex B.3 and B.4).
    pub fn to_bytes(self) -> Vec<u8> {
        let unique: &[usize] = match self {
            Self::L1 => &[256],
            Self::L2 => &[32, 32],
            // The high range's templates leave it empty.
            Self::H1 => &[0],
            Self::H2 => &[0, 0],
        };
        let mut bytes = self.start();
        push_unique(&mut bytes, unique, &[]);
        bytes
    }

    /// Everything of the `TPMT_PUBLIC` but the key itself, which comes last.
    fn start(self) -> Vec<u8> {
        const RSA: [u8; 2] = [0x00, 0x01];
        const ECC: [u8; 2] = [0x00, 0x23];
        const SHA256: [u8; 2] = [0x00, 0x0b];
        let (kind, attributes, policy, parameters) = match self {
            Self::L1 => (RSA, LOW_RANGE, POLICY_A, RSA_2048),
            Self::L2 => (ECC, LOW_RANGE, POLICY_A, P256),
            Self::H1 => (RSA, HIGH_RANGE, POLICY_B, RSA_2048),
            Self::H2 => (ECC, HIGH_RANGE, POLICY_B, P256),
        };
        let mut start = [kind, SHA256].concat();
        start.extend_from_slice(&attributes.to_be_bytes());
        start.extend_from_slice(&[0x00, 0x20]);
        start.extend_from_slice(&policy);
        start.extend_from_slice(parameters);
        start
    }
}

/// Puts what a TPM's maker chose into a template's `unique` field, where it makes another key: at the start of
/// the modulus, or of the first coordinate. A template in which there is no room for it stays as it is.
pub(crate) fn with_nonce(template: Vec<u8>, nonce: &[u8]) -> Vec<u8> {
    let Ok((public, [])) = TpmtPublic::unmarshal(&template) else {
        return template;
    };
    let unique: &[usize] = match (&public.parameters, &public.unique) {
        (TpmuPublicParms::Rsa(rsa), TpmuPublicId::Rsa(_)) => {
            &[usize::from(rsa.key_bits.value()) / 8]
        }
        (TpmuPublicParms::Ecc(_), TpmuPublicId::Ecc(_)) => &[32, 32],
        _ => return template,
    };
    if unique.first().is_none_or(|length| nonce.len() > *length) {
        return template;
    }
    let mut made = template;
    made.truncate(made.len() - public.unique.len());
    push_unique(&mut made, unique, nonce);
    made
}

/// A `unique` field with parts of these lengths: the first begins with `begin`, and the rest is zeros.
fn push_unique(bytes: &mut Vec<u8>, lengths: &[usize], mut begin: &[u8]) {
    for length in lengths {
        bytes.extend_from_slice(&[(length >> 8) as u8, *length as u8]);
        let end = bytes.len() + length;
        bytes.extend_from_slice(begin);
        bytes.resize(end, 0);
        begin = &[];
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn policy_a_is_the_endorsement_hierarchy_s_secret() {
        // TPM2_PolicySecret with TPM_RH_ENDORSEMENT and an empty reference.
        let named = Sha256::new()
            .chain_update([0; 32])
            .chain_update(0x0000_0151u32.to_be_bytes())
            .chain_update(0x4000_000bu32.to_be_bytes())
            .finalize();
        assert_eq!(Sha256::digest(named).as_slice(), POLICY_A);
    }

    #[test]
    fn a_maker_s_nonce_goes_to_the_start_of_unique_and_nowhere_else() {
        for (template, unique) in [(EkTemplate::L1, 256), (EkTemplate::L2, 2 * 32 + 2)] {
            let bytes = template.to_bytes();
            let start = bytes.len() - unique;
            let changed = with_nonce(bytes.clone(), &[7; 20]);
            assert_eq!(changed.len(), bytes.len());
            assert_eq!(changed.get(start..start + 20).unwrap(), [7; 20]);
            assert_eq!(changed.get(..start), bytes.get(..start));
            assert_eq!(changed.get(start + 20..), bytes.get(start + 20..));
            // More than there is room for.
            assert_eq!(with_nonce(bytes.clone(), &[7; 300]), bytes);
        }
        assert_eq!(with_nonce(vec![1, 2], &[7]), [1, 2]);
    }
}
