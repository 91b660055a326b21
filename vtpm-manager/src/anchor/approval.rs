//! Approvals: which PCR values an operator accepts, signed by the operator's key.
//!
//! Host IK and root secret carry one policy, `TPM2_PolicyAuthorize` for the operator's key. It
//! is satisfied by whatever policy that key signed, and each [`Approval`] is such a signature
//! over a `TPM2_PolicyPCR`. So the next software version can be approved before it is installed,
//! on another machine, and no key has to change.

use std::path::Path;

use cert_chain::policy::{
    PcrSelection, PcrSelectionError, PcrValues, approval_digest, authorize_digest,
    pcr_policy_digest,
};
use cert_chain::{Digest32, ObjectAttributes, PublicArea, TpmName};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::template::{EccTemplate, Purpose};

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

/// A statement of the operator: "these PCR values are good".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    /// For people: which software this is. Not covered by the signature.
    pub label: String,
    /// Name of the key that signed.
    pub policy_key: TpmName,
    /// The values approved.
    pub pcrs: PcrValues,
    /// ECDSA signature, two scalars of 32 bytes.
    #[serde(with = "hexadecimal")]
    signature: Vec<u8>,
}

/// Why a key or an approval was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApprovalError {
    /// The file cannot be read.
    #[error("`{path}` cannot be read")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not a private key as we write it.
    #[error("the policy key is no PEM file with an ECDSA P-256 key in PKCS #8")]
    Key,
    /// Not a public area of a policy key.
    #[error("the policy key's public area is refused: it must be that of a P-256 key which signs")]
    PublicKey,
    /// Not an approval as we write it.
    #[error("the approval is malformed")]
    Malformed(#[source] serde_json::Error),
    /// A PCR that does not exist.
    #[error(transparent)]
    Selection(#[from] PcrSelectionError),
    /// Another kind of file, or a version from the future.
    #[error("this is `{kind}` in version {version}, `{APPROVAL}` in version {VERSION} is needed")]
    Type {
        /// What the file says it is.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// No PCR is named.
    #[error("an approval of no PCRs would approve everything")]
    NoPcrs,
}

/// The policy reference of our `PolicyAuthorize`: an approval for another purpose by the same
/// key is none for this one (TPM 2.0 Part 3 §23.16).
pub const POLICY_REF: &[u8] = b"vrot-host-policy";

/// PEM label of a PKCS #8 key (RFC 7468 §10).
const PRIVATE_KEY: &str = "PRIVATE KEY";
const APPROVAL: &str = "host-policy-approval";
const VERSION: u32 = 1;

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
        let document = pem::parse(pem).map_err(|_| ApprovalError::Key)?;
        if document.tag() != PRIVATE_KEY {
            return Err(ApprovalError::Key);
        }
        Self::from_pkcs8(&Zeroizing::new(document.into_contents()))
    }

    /// Reads a key from a PEM file.
    pub fn load(path: &Path) -> Result<Self, ApprovalError> {
        let pem = std::fs::read_to_string(path).map_err(|source| ApprovalError::File {
            path: path.display().to_string(),
            source,
        })?;
        Self::from_pem(&Zeroizing::new(pem))
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

    /// Signs an approval of `pcrs`.
    pub fn approve(&self, label: &str, pcrs: PcrValues) -> Result<Approval, ApprovalError> {
        if pcrs.is_empty() {
            return Err(ApprovalError::NoPcrs);
        }
        let signature = self
            .key
            .sign(&SystemRandom::new(), &signed_message(&pcrs)?)
            .map_err(|_| ApprovalError::Random)?;
        Ok(Approval {
            kind: APPROVAL.to_owned(),
            version: VERSION,
            label: label.to_owned(),
            policy_key: self.public.name(),
            pcrs,
            signature: signature.as_ref().to_vec(),
        })
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
            purpose: Purpose::Signing,
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
        authorize_digest(&self.name(), POLICY_REF)
    }
}

impl Approval {
    /// Reads an approval as it was written by [`Approval::to_json`]. Its signature is not
    /// checked here: [`Approval::is_signed_by`].
    pub fn from_json(json: &[u8]) -> Result<Self, ApprovalError> {
        let approval: Self = serde_json::from_slice(json).map_err(ApprovalError::Malformed)?;
        if approval.kind != APPROVAL || approval.version != VERSION {
            return Err(ApprovalError::Type {
                kind: approval.kind,
                version: approval.version,
            });
        }
        if approval.pcrs.is_empty() {
            return Err(ApprovalError::NoPcrs);
        }
        approval.selection()?;
        Ok(approval)
    }

    /// As a JSON text with a line feed at the end.
    pub fn to_json(&self) -> String {
        match serde_json::to_string_pretty(self) {
            Ok(json) => json + "\n",
            // Strings, numbers and a map whose keys are numbers.
            Err(error) => unreachable!("JSON: {error}"),
        }
    }

    /// Whether `key` signed these values.
    pub fn is_signed_by(&self, key: &PolicyKeyPublic) -> bool {
        let Ok(message) = signed_message(&self.pcrs) else {
            return false;
        };
        !self.pcrs.is_empty()
            && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.0.public_key_bytes())
                .verify(&message, &self.signature)
                .is_ok()
    }

    /// The PCRs it covers.
    pub fn selection(&self) -> Result<PcrSelection, PcrSelectionError> {
        PcrSelection::new(self.pcrs.keys().copied())
    }

    /// Digest of the approved `TPM2_PolicyPCR`.
    pub fn policy_digest(&self) -> Result<Digest32, PcrSelectionError> {
        pcr_policy_digest(&self.pcrs)
    }

    /// What `TPM2_VerifySignature` takes as digest.
    pub(crate) fn signed_digest(&self) -> Result<Digest32, PcrSelectionError> {
        Ok(approval_digest(&self.policy_digest()?, POLICY_REF))
    }

    /// The two scalars of the signature.
    pub(crate) fn scalars(&self) -> Option<(&[u8], &[u8])> {
        self.signature.split_at_checked(32)
    }
}

/// `approved ‖ policyRef`: its SHA-256 value is what the TPM checks the signature against.
fn signed_message(pcrs: &PcrValues) -> Result<Vec<u8>, PcrSelectionError> {
    let mut message = pcr_policy_digest(pcrs)?.as_bytes().to_vec();
    message.extend_from_slice(POLICY_REF);
    Ok(message)
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

pub(super) mod hexadecimal {
    //! Bytes as a hexadecimal string in JSON.

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
