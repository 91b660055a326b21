//! Public areas (`TPMT_PUBLIC`, TPM 2.0 Part 2 §12.2.4) of the keys that we have TPMs make.
//!
//! They are bytes: the physical TPM gets them through ESYS, a vRoT through its command channel.
//! Those of endorsement keys are in [`ek_template`](crate::ek_template).

use crate::{ConfirmationKey, ObjectAttributes};

/// A storage or signing key on NIST P-256 whose public point is still to be made, or known.
pub struct EccTemplate<'a> {
    /// Attributes.
    pub attributes: ObjectAttributes,
    /// Policy digest; may be empty.
    pub auth_policy: &'a [u8],
    /// What the key is for.
    pub purpose: Purpose,
    /// Coordinates of the point, or, in a template, what makes the key differ from others.
    pub unique: [&'a [u8]; 2],
}

/// What a key is for.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// Protecting other objects, with AES-128 in CFB mode.
    Storage,
    /// Signing, with ECDSA and SHA-256 only.
    Signing,
}

/// `fixedTPM | fixedParent | sensitiveDataOrigin`: it was made in this TPM and cannot leave it.
pub const RESIDENT: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN);

/// Attributes of a device's identity key: a restricted signing key that its empty authorization value
/// allows to use.
pub const DEVICE_KEY: ObjectAttributes = RESIDENT
    .with(ObjectAttributes::USER_WITH_AUTH)
    .with(ObjectAttributes::NO_DA)
    .with(ObjectAttributes::RESTRICTED)
    .with(ObjectAttributes::SIGN);

impl EccTemplate<'_> {
    /// As a marshalled `TPMT_PUBLIC`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, ECC);
        put(&mut bytes, SHA256);
        bytes.extend_from_slice(&self.attributes.bits().to_be_bytes());
        put_sized(&mut bytes, self.auth_policy);
        match self.purpose {
            Purpose::Storage => {
                bytes.extend_from_slice(&AES_128_CFB);
                put(&mut bytes, NULL);
            }
            Purpose::Signing => {
                put(&mut bytes, NULL);
                put(&mut bytes, ECDSA);
                put(&mut bytes, SHA256);
            }
        }
        put(&mut bytes, NIST_P256);
        // No key derivation scheme: TPMs implement none for keys.
        put(&mut bytes, NULL);
        for coordinate in self.unique {
            put_sized(&mut bytes, coordinate);
        }
        bytes
    }
}

/// The storage root key: the usual P-256 template, which other software makes as well (TCG TPM
/// v2.0 Provisioning Guidance §7.5.1).
pub fn storage_root_key() -> Vec<u8> {
    EccTemplate {
        attributes: RESIDENT
            .with(ObjectAttributes::USER_WITH_AUTH)
            .with(ObjectAttributes::NO_DA)
            .with(ObjectAttributes::RESTRICTED)
            .with(ObjectAttributes::DECRYPT),
        auth_policy: &[],
        purpose: Purpose::Storage,
        unique: [&[0; 32], &[0; 32]],
    }
    .to_bytes()
}

/// A device's identity key: a primary key of the endorsement hierarchy, so that its TPM makes the same
/// one again whenever it is asked, also after `TPM2_Clear`, and states its counters as they are.
pub fn device_key() -> Vec<u8> {
    let mut purpose = [0; 32];
    purpose
        .iter_mut()
        .zip(b"vrot device identity key v1")
        .for_each(|(to, from)| *to = *from);
    EccTemplate {
        attributes: DEVICE_KEY,
        auth_policy: &[],
        purpose: Purpose::Signing,
        unique: [&purpose, &[0; 32]],
    }
    .to_bytes()
}

/// The mark of keys that sign data, where other objects have the digest of a policy: SHA-256 of
/// "vrot data signing key v1". No policy has this digest, so the key is used by its empty authorization
/// value.
pub const DATA_KEY_POLICY: [u8; 32] = [
    0xe7, 0xc4, 0x17, 0x4b, 0x31, 0x88, 0x59, 0x23, 0xc5, 0xb5, 0xc6, 0xfd, 0x10, 0x73, 0x32, 0x6a,
    0xe6, 0x2c, 0x0e, 0xdd, 0x73, 0x32, 0xa1, 0xc0, 0xc0, 0x78, 0x04, 0xe4, 0xd7, 0xfd, 0x76, 0xe8,
];

/// A key that signs data: a primary key of the endorsement hierarchy, which its TPM makes anew whenever it is
/// asked, as a device's identity key.
pub fn data_key() -> Vec<u8> {
    let mut purpose = [0; 32];
    purpose
        .iter_mut()
        .zip(b"vrot data signing key v1")
        .for_each(|(to, from)| *to = *from);
    EccTemplate {
        attributes: RESIDENT
            .with(ObjectAttributes::USER_WITH_AUTH)
            .with(ObjectAttributes::NO_DA)
            .with(ObjectAttributes::SIGN),
        auth_policy: &DATA_KEY_POLICY,
        purpose: Purpose::Signing,
        unique: [&purpose, &[0; 32]],
    }
    .to_bytes()
}

/// A key with which a person confirms what a trusted display showed. It is made with `TPM2_Create`, at random:
/// a primary key would be the same one whatever PIN it is made with.
pub fn confirmation_key() -> Vec<u8> {
    EccTemplate {
        attributes: RESIDENT.with(ObjectAttributes::SIGN),
        auth_policy: ConfirmationKey::policy().as_bytes(),
        purpose: Purpose::Signing,
        unique: [&[], &[]],
    }
    .to_bytes()
}

const ECC: u16 = 0x0023;
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const ECDSA: u16 = 0x0018;
const NIST_P256: u16 = 0x0003;
/// `TPM_ALG_AES`, 128 bits, `TPM_ALG_CFB`
const AES_128_CFB: [u8; 6] = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43];

fn put(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

/// A TPM2B; every caller's content is a digest, a coordinate or a modulus.
fn put_sized(bytes: &mut Vec<u8>, content: &[u8]) {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    put(bytes, length);
    bytes.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest32;

    #[test]
    fn the_mark_of_data_keys_is_the_digest_of_their_purpose() {
        let mark = Digest32::of(b"vrot data signing key v1");
        assert_eq!(mark.as_bytes().as_slice(), DATA_KEY_POLICY);
    }
}
