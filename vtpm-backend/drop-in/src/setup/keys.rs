//! Templates of keys: endorsement keys (TCG EK Credential Profile 2.5, annex B), and a storage key.

use anyhow::{Result, bail};

/// A key that is made from a template and stays.
pub(super) struct Key {
    /// For people.
    pub(super) name: &'static str,
    /// For files.
    pub(super) short: &'static str,
    /// In which hierarchy (`TPM_RH`).
    pub(super) hierarchy: u32,
    /// Where it stays.
    pub(super) handle: u32,
    /// Where its certificate is, and its template, if that is not the profile's.
    pub(super) certificate_index: u32,
    pub(super) template_index: u32,
    /// `TPMT_PUBLIC`
    pub(super) template: Vec<u8>,
}

/// What an endorsement key may do. One that signs is not of the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) sign: bool,
    pub(super) decrypt: bool,
}

/// Which RSA endorsement keys there are, in bits.
pub(super) const RSA_SIZES: [u64; 3] = [2048, 3072, 4096];

const ENDORSEMENT: u32 = 0x4000_000b;
const OWNER: u32 = 0x4000_0001;

const RSA: u16 = 0x0001;
const ECC: u16 = 0x0023;
const SHA256: u16 = 0x000b;
const SHA384: u16 = 0x000c;
const AES: u16 = 0x0006;
const CFB: u16 = 0x0043;
const NULL: u16 = 0x0010;
const P384: u16 = 0x0004;

/// `TPMA_OBJECT`: fixedTPM, fixedParent, sensitiveDataOrigin
const RESIDENT: u32 = 0x32;
const USER_WITH_AUTH: u32 = 0x40;
const ADMIN_WITH_POLICY: u32 = 0x80;
const NO_DA: u32 = 0x400;
const RESTRICTED: u32 = 0x1_0000;
const DECRYPT: u32 = 0x2_0000;
const SIGN: u32 = 0x4_0000;

/// `PolicySecret(TPM_RH_ENDORSEMENT)` with SHA-256 (profile, B.6.2).
const POLICY_A_SHA256: &str = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
/// The same, or the owner's policy, with SHA-384 (profile, B.6.3).
const POLICY_B_SHA384: &str = "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca\
                               cb47ba09699646150f9fc000f3f80e12";

/// An RSA endorsement key of so many bits.
pub(super) fn endorsement_rsa(bits: u64, may: Use) -> Result<Key> {
    // Templates L-1, H-6 and H-7.
    let (name, short, handle, certificate_index, bits) = match bits {
        2048 => ("RSA 2048", "rsa2048", 0x8101_0001, 0x01c0_0002, 2048),
        3072 => ("RSA 3072", "rsa3072", 0x8101_001c, 0x01c0_001c, 3072),
        4096 => ("RSA 4096", "rsa4096", 0x8101_001e, 0x01c0_001e, 4096),
        _ => bail!("there is no RSA endorsement key of {bits} bits: give 2048, 3072 or 4096"),
    };
    let is_low = bits == 2048;
    let template = match is_low {
        true => Template {
            kind: RSA,
            hash: SHA256,
            attributes: may.attributes(),
            policy: POLICY_A_SHA256,
            symmetric: may.symmetric(128),
            rest: rsa_rest(bits, 256),
        },
        false => Template {
            kind: RSA,
            hash: SHA384,
            attributes: may.attributes() | USER_WITH_AUTH,
            policy: POLICY_B_SHA384,
            symmetric: may.symmetric(256),
            rest: rsa_rest(bits, 0),
        },
    };
    Ok(Key {
        name,
        short,
        hierarchy: ENDORSEMENT,
        handle,
        certificate_index,
        template_index: certificate_index + if is_low { 2 } else { 1 },
        template: template.to_bytes()?,
    })
}

/// The endorsement key over P-384 (template H-3), the second one that every TPM gets.
pub(super) fn endorsement_p384(may: Use) -> Key {
    let template = Template {
        kind: ECC,
        hash: SHA384,
        attributes: may.attributes() | USER_WITH_AUTH,
        policy: POLICY_B_SHA384,
        symmetric: may.symmetric(256),
        rest: ecc_rest(P384, 0),
    };
    Key {
        name: "ECC",
        short: "secp384r1",
        hierarchy: ENDORSEMENT,
        handle: 0x8101_0016,
        certificate_index: 0x01c0_0016,
        template_index: 0x01c0_0017,
        template: template.to_bytes().unwrap_or_default(),
    }
}

/// A storage key, of a curve or of RSA.
pub(super) fn storage_key(ecc: bool, bits: u64) -> Result<Key> {
    let attributes = RESIDENT | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT;
    let (kind, hash, symmetric, rest) = match (ecc, bits) {
        (true, _) => (ECC, SHA384, Some(256), ecc_rest(P384, 48)),
        (false, 2048) => (RSA, SHA256, Some(128), rsa_rest(2048, 256)),
        (false, 3072) => (RSA, SHA384, Some(256), rsa_rest(3072, 384)),
        (false, _) => bail!("there is no storage key of {bits} bits: give 2048 or 3072"),
    };
    let template = Template {
        kind,
        hash,
        attributes,
        policy: "",
        symmetric,
        rest,
    };
    Ok(Key {
        name: "storage",
        short: "srk",
        hierarchy: OWNER,
        handle: 0x8100_0001,
        certificate_index: 0,
        template_index: 0,
        template: template.to_bytes()?,
    })
}

impl Use {
    fn attributes(self) -> u32 {
        let may_not = if self.sign { 0 } else { RESTRICTED };
        let decrypt = if self.decrypt { DECRYPT } else { 0 };
        let sign = if self.sign { SIGN } else { 0 };
        RESIDENT | ADMIN_WITH_POLICY | may_not | decrypt | sign
    }

    /// A key that wraps others has a cipher, of so many bits.
    fn symmetric(self, bits: u16) -> Option<u16> {
        (!self.sign).then_some(bits)
    }
}

struct Template {
    kind: u16,
    hash: u16,
    attributes: u32,
    /// In hexadecimal digits.
    policy: &'static str,
    symmetric: Option<u16>,
    /// Scheme, size or curve, and `unique`.
    rest: Vec<u8>,
}

impl Template {
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let policy = hex::decode(self.policy)?;
        let mut bytes = words(&[self.kind, self.hash]);
        bytes.extend(self.attributes.to_be_bytes());
        bytes.extend(u16::try_from(policy.len())?.to_be_bytes());
        bytes.extend(policy);
        bytes.extend(match self.symmetric {
            Some(bits) => words(&[AES, bits, CFB]),
            None => words(&[NULL]),
        });
        bytes.extend(&self.rest);
        Ok(bytes)
    }
}

/// No scheme, size, the usual exponent, and so many zeros.
fn rsa_rest(bits: u16, unique: u16) -> Vec<u8> {
    let mut bytes = words(&[NULL, bits, 0, 0, unique]);
    bytes.resize(bytes.len() + usize::from(unique), 0);
    bytes
}

/// No scheme, curve, no derivation, and twice so many zeros.
fn ecc_rest(curve: u16, unique: u16) -> Vec<u8> {
    let mut bytes = words(&[NULL, curve, NULL]);
    for _ in 0..2 {
        bytes.extend(unique.to_be_bytes());
        bytes.resize(bytes.len() + usize::from(unique), 0);
    }
    bytes
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
