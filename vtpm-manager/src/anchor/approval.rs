//! Approvals: which PCR values an operator accepts, signed by the operator's key.
//!
//! Host IK and root secret carry one policy, `TPM2_PolicyAuthorize` for the operator's key. It
//! is satisfied by whatever policy that key signed, and each [`Approval`] is such a signature
//! over a `TPM2_PolicyPCR`. So the next software version can be approved before it is installed,
//! on another machine, and no key has to change.

use cert_chain::pem::FileError;
use cert_chain::policy::{
    HOST_POLICY_REF, PcrSelection, PcrSelectionError, PcrValues, approval_digest, pcr_policy_digest,
};
use cert_chain::{Digest32, TpmName};
use serde::{Deserialize, Serialize};

use super::policy_key::{PolicyKey, PolicyKeyPublic};

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
    /// Not a private key as we write it.
    #[error(
        "this is no PEM file with the operator's private key, an ECDSA P-256 key in PKCS #8, as \
         `vtpmctl host policy keygen` makes it"
    )]
    Key,
    /// A file in which not everything can be read.
    #[error("{0}")]
    KeyFile(FileError),
    /// A private key where its public half is needed.
    #[error(
        "this is a private key, and here its public half is needed: the file that \
         `vtpmctl host policy keygen` wrote beside it, with the ending .pub"
    )]
    PrivateKey,
    /// Not a public area of a policy key.
    #[error("the policy key's public area is refused: it must be that of a P-256 key which signs")]
    PublicKey,
    /// Not the public key of an operator.
    #[error(
        "this is no PEM file with the public key of an operator (`-----BEGIN PUBLIC KEY-----`, \
         P-256), as `vtpmctl host policy keygen` makes it"
    )]
    PublicKeyFile,
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

const APPROVAL: &str = "host-policy-approval";
const VERSION: u32 = 1;

impl PolicyKey {
    /// Signs an approval of `pcrs`.
    pub fn approve(&self, label: &str, pcrs: PcrValues) -> Result<Approval, ApprovalError> {
        if pcrs.is_empty() {
            return Err(ApprovalError::NoPcrs);
        }
        let signature = self.sign(&signed_message(&pcrs)?)?;
        Ok(Approval {
            kind: APPROVAL.to_owned(),
            version: VERSION,
            label: label.to_owned(),
            policy_key: self.public().name(),
            pcrs,
            signature,
        })
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
        !self.pcrs.is_empty() && key.signed(&message, &self.signature)
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
        Ok(approval_digest(&self.policy_digest()?, HOST_POLICY_REF))
    }

    /// The two scalars of the signature.
    pub(crate) fn scalars(&self) -> Option<(&[u8], &[u8])> {
        self.signature.split_at_checked(32)
    }
}

/// `approved ‖ policyRef`: its SHA-256 value is what the TPM checks the signature against.
fn signed_message(pcrs: &PcrValues) -> Result<Vec<u8>, PcrSelectionError> {
    let mut message = pcr_policy_digest(pcrs)?.as_bytes().to_vec();
    message.extend_from_slice(HOST_POLICY_REF);
    Ok(message)
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
