//! The operator's key, and its public half, which hosts and issuers know it by.

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{ApprovalError, HostKeys, Purpose};
use crate::pem as read_pem;
use crate::policy::authorize_digest;
use crate::template::{self, EccTemplate};
use crate::{Digest32, ObjectAttributes, PublicArea, TpmName, hexadecimal};

/// The operator's key: it approves PCR values, and nothing else. It belongs on the operator's
/// machine, not on the host.
pub struct PolicyKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key: EcdsaKeyPair,
    public: PolicyKeyPublic,
}

/// The public half of a [`PolicyKey`], as the TPM object that `TPM2_LoadExternal` takes: its
/// name stands in the policy of host IK and root secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyKeyPublic(PublicArea);

/// PEM label of a PKCS #8 key (RFC 7468 §10).
const PRIVATE_KEY: &str = "PRIVATE KEY";
/// PEM label of a SubjectPublicKeyInfo (RFC 7468 §13).
const PUBLIC_KEY: &str = "PUBLIC KEY";

impl PolicyKey {
    /// A new key.
    pub fn generate() -> Result<Self, ApprovalError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| ApprovalError::Random)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a key from PEM.
    pub fn from_pem(pem: &str) -> Result<Self, ApprovalError> {
        let document = read_pem::only_block(pem.as_bytes()).map_err(ApprovalError::KeyFile)?;
        if document.label != PRIVATE_KEY {
            return Err(ApprovalError::Key);
        }
        Self::from_pkcs8(&document.contents)
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, ApprovalError> {
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8,
            &SystemRandom::new(),
        )
        .map_err(|_| ApprovalError::Key)?;
        let public = PolicyKeyPublic::from_point(ring::signature::KeyPair::public_key(&key))?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            key,
            public,
        })
    }

    /// The key as a PEM text, for a file that only the operator can read.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let document = pem::Pem::new(PRIVATE_KEY, self.pkcs8.to_vec());
        let pem = pem::encode_config(
            &document,
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        Zeroizing::new(pem)
    }

    /// The public half.
    pub fn public(&self) -> &PolicyKeyPublic {
        &self.public
    }

    /// Signs a message; `r ‖ s`.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ApprovalError> {
        let signature = self
            .key
            .sign(&SystemRandom::new(), message)
            .map_err(|_| ApprovalError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl PolicyKeyPublic {
    /// Reads a `TPMT_PUBLIC`.
    pub fn from_bytes(tpmt_public: &[u8]) -> Result<Self, ApprovalError> {
        let area = PublicArea::parse(tpmt_public).map_err(|_| ApprovalError::PublicKey)?;
        // One form only, so that one key has one name.
        let rebuilt = Self::from_point(area.public_key_bytes())?;
        if rebuilt.0 == area {
            Ok(rebuilt)
        } else {
            Err(ApprovalError::PublicKey)
        }
    }

    /// Reads the one public key in a PEM text.
    pub fn from_pem(pem: impl AsRef<[u8]>) -> Result<Self, ApprovalError> {
        match <[Self; 1]>::try_from(Self::all_from_pem(pem)?) {
            Ok([key]) => Ok(key),
            Err(_) => Err(ApprovalError::PublicKeyFile),
        }
    }

    /// Reads all public keys in a PEM text; one that holds anything else is refused.
    pub fn all_from_pem(pem: impl AsRef<[u8]>) -> Result<Vec<Self>, ApprovalError> {
        let pem = pem.as_ref();
        let mut keys = Vec::new();
        for block in read_pem::blocks(pem).map_err(ApprovalError::KeyFile)? {
            match block.label.as_str() {
                PUBLIC_KEY => keys.push(Self::from_spki(&block.contents)?),
                PRIVATE_KEY => return Err(ApprovalError::PrivateKey),
                _ => return Err(ApprovalError::PublicKeyFile),
            }
        }
        // An empty file says "none", as the issuer writes it down; any other text is no key.
        if keys.is_empty() && !pem.trim_ascii().is_empty() {
            return Err(ApprovalError::PublicKeyFile);
        }
        Ok(keys)
    }

    /// As a PEM text: a SubjectPublicKeyInfo (RFC 7468 §13).
    pub fn to_pem(&self) -> String {
        read_pem::encode_public_key(&self.0.subject_public_key_info())
    }

    /// `spki` is a SubjectPublicKeyInfo in DER.
    fn from_spki(spki: &[u8]) -> Result<Self, ApprovalError> {
        let info =
            SubjectPublicKeyInfo::from_der(spki).map_err(|_| ApprovalError::PublicKeyFile)?;
        if info.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(ApprovalError::PublicKeyFile);
        }
        Self::from_point(info.der_bytes())
    }

    /// Whether this key made a signature, `r ‖ s`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.0.public_key_bytes())
            .verify(message, signature)
            .is_ok()
    }

    /// `point` is an uncompressed SEC 1 point.
    fn from_point(point: impl AsRef<[u8]>) -> Result<Self, ApprovalError> {
        let coordinates = point.as_ref().get(1..).unwrap_or_default();
        let (x, y) = coordinates
            .split_at_checked(32)
            .ok_or(ApprovalError::PublicKey)?;
        let bytes = EccTemplate {
            // An object that is loaded from outside is none of fixedTPM, fixedParent and
            // restricted (TPM 2.0 Part 3 §12.3).
            attributes: ObjectAttributes::USER_WITH_AUTH
                .with(ObjectAttributes::NO_DA)
                .with(ObjectAttributes::SIGN),
            auth_policy: &[],
            purpose: template::Purpose::Signing,
            unique: [x, y],
        }
        .to_bytes();
        let area = PublicArea::parse(&bytes).map_err(|_| ApprovalError::PublicKey)?;
        Ok(Self(area))
    }

    /// The marshalled `TPMT_PUBLIC`, e.g. for an enrolment request.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The key's name.
    pub fn name(&self) -> TpmName {
        self.0.name()
    }

    /// Digest of the policy that host IK and root secret carry.
    pub fn policy_digest(&self) -> Digest32 {
        self.policy_digest_for::<HostKeys>()
    }

    /// Digest of the policy that whatever this key approves for a purpose satisfies.
    pub fn policy_digest_for<P: Purpose>(&self) -> Digest32 {
        authorize_digest(&self.name(), P::POLICY_REF)
    }
}

impl Serialize for PolicyKeyPublic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hexadecimal::serialize(self.as_bytes(), serializer)
    }
}

impl<'de> Deserialize<'de> for PolicyKeyPublic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hexadecimal::deserialize(deserializer)?;
        Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}
