//! Public areas (`TPMT_PUBLIC`, TPM 2.0 Part 2 §12.2.4) of the keys that we have TPMs make.
//!
//! They are bytes: the physical TPM gets them through ESYS, a vRoT through its command channel.

use cert_chain::ObjectAttributes;

/// A storage or signing key on NIST P-256 whose public point is still to be made, or known.
pub(crate) struct EccTemplate<'a> {
    /// Attributes.
    pub(crate) attributes: ObjectAttributes,
    /// Policy digest; may be empty.
    pub(crate) auth_policy: &'a [u8],
    /// What the key is for.
    pub(crate) purpose: Purpose,
    /// Coordinates of the point, or, in a template, what makes the key differ from others.
    pub(crate) unique: [&'a [u8]; 2],
}

/// What a key is for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Protecting other objects, with AES-128 in CFB mode.
    Storage,
    /// Signing, with ECDSA and SHA-256 only.
    Signing,
}

/// `fixedTPM | fixedParent | sensitiveDataOrigin`: born in this TPM and never leaving it.
pub(crate) const RESIDENT: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN);

impl EccTemplate<'_> {
    /// As a marshalled `TPMT_PUBLIC`.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = header(ECC, self.attributes, self.auth_policy);
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
pub(crate) fn storage_root_key() -> Vec<u8> {
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

/// Endorsement key on P-256: template L-2 (TCG EK Credential Profile 2.5 §B.3.4).
pub(crate) fn endorsement_key_p256() -> Vec<u8> {
    EccTemplate {
        attributes: EK_ATTRIBUTES,
        auth_policy: &POLICY_A,
        purpose: Purpose::Storage,
        unique: [&[0; 32], &[0; 32]],
    }
    .to_bytes()
}

/// Endorsement key RSA-2048: template L-1 (TCG EK Credential Profile 2.5 §B.3.3).
pub(crate) fn endorsement_key_rsa() -> Vec<u8> {
    let mut bytes = header(RSA, EK_ATTRIBUTES, &POLICY_A);
    bytes.extend_from_slice(&AES_128_CFB);
    put(&mut bytes, NULL);
    put(&mut bytes, 2048);
    // Exponent zero: 65,537.
    bytes.extend_from_slice(&0u32.to_be_bytes());
    put_sized(&mut bytes, &[0; 256]);
    bytes
}

const EK_ATTRIBUTES: ObjectAttributes = RESIDENT
    .with(ObjectAttributes::ADMIN_WITH_POLICY)
    .with(ObjectAttributes::RESTRICTED)
    .with(ObjectAttributes::DECRYPT);

/// PolicyA (EK Credential Profile 2.5 §B.6.2): `TPM2_PolicySecret` with the endorsement hierarchy.
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

const RSA: u16 = 0x0001;
const ECC: u16 = 0x0023;
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const ECDSA: u16 = 0x0018;
const NIST_P256: u16 = 0x0003;
/// `TPM_ALG_AES`, 128 bits, `TPM_ALG_CFB`
const AES_128_CFB: [u8; 6] = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43];

fn header(kind: u16, attributes: ObjectAttributes, auth_policy: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind);
    put(&mut bytes, SHA256);
    bytes.extend_from_slice(&attributes.bits().to_be_bytes());
    put_sized(&mut bytes, auth_policy);
    bytes
}

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
    use sha2::{Digest, Sha256};
    use tss_esapi::structures::Public;
    use tss_esapi::traits::{Marshall, UnMarshall};

    use super::*;

    #[test]
    fn the_software_stack_reads_every_template_back_as_it_was_written() -> anyhow::Result<()> {
        for template in [
            storage_root_key(),
            endorsement_key_p256(),
            endorsement_key_rsa(),
        ] {
            assert_eq!(Public::unmarshall(&template)?.marshall()?, template);
        }
        Ok(())
    }

    #[test]
    fn the_ek_templates_are_those_of_the_tcg() -> anyhow::Result<()> {
        use tss_esapi::abstraction::AsymmetricAlgorithmSelection as Algorithm;
        use tss_esapi::abstraction::ek::create_ek_public_from_default_template_2 as default_template;
        use tss_esapi::interface_types::ecc::EccCurve;
        use tss_esapi::interface_types::key_bits::RsaKeyBits;

        let rsa = default_template(Algorithm::Rsa(RsaKeyBits::Rsa2048), None)?;
        assert_eq!(rsa.marshall()?, endorsement_key_rsa());
        let p256 = default_template(Algorithm::Ecc(EccCurve::NistP256), None)?;
        assert_eq!(p256.marshall()?, endorsement_key_p256());
        Ok(())
    }

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
}
