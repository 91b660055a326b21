//! Approvals: which PCR values an operator accepts, signed by the operator's key.
//!
//! Host IK and root secret carry one policy, `TPM2_PolicyAuthorize` for the operator's key. It
//! is satisfied by whatever policy that key signed, and each [`Approval`] is such a signature
//! over a `TPM2_PolicyPCR`. So the next software version can be approved before it is installed,
//! on another machine, and no key has to change. Data that a VM seals to approved boots carry such a policy
//! too, for approvals of another [`Purpose`].

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;

use printable::is_printable;
use serde::{Deserialize, Serialize};

use super::error::{ApprovalError, MAX_LABEL, VERSION};
use super::key::{PolicyKey, PolicyKeyPublic};
use crate::json_texts::{read_strictly, unprintable_field};
use crate::pcr::BANKS;
use crate::policy::{DATA_POLICY_REF, HOST_POLICY_REF, approval_digest, pcr_policy_digest};
use crate::{Digest32, HashAlgorithm, PcrValues, TpmName, hexadecimal};

/// What PCR values are approved for. The signature covers it, so an approval for one purpose is none for
/// another, even by the same key.
pub trait Purpose: Clone + Debug + PartialEq + Eq {
    /// `type` of the approval as it is written.
    const KIND: &'static str;
    /// The policy reference of the `TPM2_PolicyAuthorize` that it satisfies.
    const POLICY_REF: &'static [u8];
}

/// The use of a host's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeys;

/// Opening data that a VM sealed to approved boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedData;

impl Purpose for HostKeys {
    const KIND: &'static str = "host-policy-approval";
    const POLICY_REF: &'static [u8] = HOST_POLICY_REF;
}

impl Purpose for SealedData {
    const KIND: &'static str = "sealed-data-approval";
    const POLICY_REF: &'static [u8] = DATA_POLICY_REF;
}

/// A statement of the operator: "these PCR values are good".
///
/// It speaks of one PCR bank. The signature covers which, as a part of the policy that it approves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ApprovalFile", into = "ApprovalFile", bound = "P: Purpose")]
pub struct Approval<P = HostKeys> {
    version: u32,
    /// For people: which software this is. Not covered by the signature.
    pub label: String,
    /// Name of the key that signed.
    pub policy_key: TpmName,
    /// The values approved.
    pub pcrs: PcrValues,
    /// ECDSA signature, two scalars of 32 bytes.
    signature: Vec<u8>,
    purpose: PhantomData<P>,
}

/// An approval as it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
struct ApprovalFile {
    #[serde(rename = "type")]
    #[cfg_attr(feature = "schema", schema(pattern = "^host-policy-approval$"))]
    kind: String,
    /// Version 1 names no bank, and is of SHA-256.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 2))]
    version: u32,
    /// For people: which software this is. The signature does not cover it.
    label: String,
    /// Name of the key that signed.
    policy_key: TpmName,
    /// The PCR bank that the values are of. The signature covers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    bank: Option<HashAlgorithm>,
    /// The values approved, by number of the PCR.
    #[cfg_attr(feature = "schema", schema(value_type = BTreeMap<String, String>))]
    pcrs: BTreeMap<u8, String>,
    /// ECDSA signature, two scalars of 32 bytes.
    #[serde(with = "hexadecimal")]
    #[cfg_attr(feature = "schema", schema(value_type = String, pattern = "^[0-9a-f]{128}$"))]
    signature: Vec<u8>,
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for Approval {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        ApprovalFile::schema()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for Approval {
    fn name() -> std::borrow::Cow<'static, str> {
        "HostPolicyApproval".into()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        ApprovalFile::schemas(schemas);
    }
}

/// The version that names no PCR bank.
const WITHOUT_BANK: u32 = 1;

impl PolicyKey {
    /// Signs an approval of `pcrs` for the use of a host's keys.
    pub fn approve(&self, label: &str, pcrs: PcrValues) -> Result<Approval, ApprovalError> {
        self.approve_for(label, pcrs)
    }

    /// Signs an approval of `pcrs`.
    pub fn approve_for<P: Purpose>(
        &self,
        label: &str,
        pcrs: PcrValues,
    ) -> Result<Approval<P>, ApprovalError> {
        check(&pcrs)?;
        check_label(label)?;
        let signature = self.sign(&signed_message::<P>(&pcrs))?;
        Ok(Approval {
            version: VERSION,
            label: label.to_owned(),
            policy_key: self.public().name(),
            pcrs,
            signature,
            purpose: PhantomData,
        })
    }
}

impl<P: Purpose> Approval<P> {
    /// Reads an approval as it was written by [`Approval::to_json`]. Its signature is not
    /// checked here: [`Approval::is_signed_by`].
    pub fn from_json(json: &[u8]) -> Result<Self, ApprovalError> {
        let json = read_strictly(json).map_err(ApprovalError::Malformed)?;
        if let Some(field) = unprintable_field(&json) {
            return Err(ApprovalError::Unprintable { field });
        }
        let file: ApprovalFile = serde_json::from_value(json).map_err(ApprovalError::Malformed)?;
        check_label(&file.label)?;
        file.try_into()
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
        !self.pcrs.is_empty() && key.signed(&signed_message::<P>(&self.pcrs), &self.signature)
    }

    /// Digest of the approved `TPM2_PolicyPCR`.
    pub fn policy_digest(&self) -> Digest32 {
        pcr_policy_digest(&self.pcrs)
    }

    /// What `TPM2_VerifySignature` takes as digest.
    pub fn signed_digest(&self) -> Digest32 {
        approval_digest(&self.policy_digest(), P::POLICY_REF)
    }

    /// The two scalars of the signature.
    pub fn scalars(&self) -> Option<(&[u8], &[u8])> {
        self.signature.split_at_checked(32)
    }
}

/// A note is for people: one line that they can read.
fn check_label(label: &str) -> Result<(), ApprovalError> {
    if label.chars().all(is_printable) && label.chars().count() <= MAX_LABEL {
        Ok(())
    } else {
        Err(ApprovalError::Label)
    }
}

/// `approved ‖ policyRef`: its SHA-256 value is what the TPM checks the signature against.
fn signed_message<P: Purpose>(pcrs: &PcrValues) -> Vec<u8> {
    let mut message = pcr_policy_digest(pcrs).as_bytes().to_vec();
    message.extend_from_slice(P::POLICY_REF);
    message
}

/// What no approval may be of, whatever it is for.
fn check(pcrs: &PcrValues) -> Result<(), ApprovalError> {
    if pcrs.is_empty() {
        return Err(ApprovalError::NoPcrs);
    }
    if !BANKS.contains(&pcrs.bank()) {
        return Err(ApprovalError::Bank {
            found: Some(pcrs.bank()),
        });
    }
    Ok(())
}

impl<P: Purpose> TryFrom<ApprovalFile> for Approval<P> {
    type Error = ApprovalError;

    fn try_from(file: ApprovalFile) -> Result<Self, ApprovalError> {
        if file.kind != P::KIND || !(WITHOUT_BANK..=VERSION).contains(&file.version) {
            return Err(ApprovalError::Type {
                expected: P::KIND,
                kind: file.kind,
                version: file.version,
            });
        }
        let bank = match (file.version, file.bank) {
            (WITHOUT_BANK, None) => HashAlgorithm::Sha256,
            (VERSION, Some(bank)) => bank,
            (_, found) => return Err(ApprovalError::Bank { found }),
        };
        let values = file.pcrs.iter().map(|(pcr, value)| (*pcr, value.as_str()));
        let pcrs = PcrValues::from_hex(bank, values)?;
        check(&pcrs)?;
        Ok(Self {
            version: file.version,
            label: file.label,
            policy_key: file.policy_key,
            pcrs,
            signature: file.signature,
            purpose: PhantomData,
        })
    }
}

impl<P: Purpose> From<Approval<P>> for ApprovalFile {
    fn from(approval: Approval<P>) -> Self {
        Self {
            kind: P::KIND.to_owned(),
            version: approval.version,
            label: approval.label,
            policy_key: approval.policy_key,
            bank: (approval.version > WITHOUT_BANK).then_some(approval.pcrs.bank()),
            pcrs: approval.pcrs.to_hex(),
            signature: approval.signature,
        }
    }
}
