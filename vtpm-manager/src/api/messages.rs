//! Schemas of the messages that `cert-chain` and the anchor define: for the description only, since
//! both read and write their own JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// First message of an enrolment, host to issuer.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEnrolmentRequest {
    #[serde(rename = "type")]
    #[schema(pattern = "^host-enrolment-request$")]
    kind: String,
    #[schema(minimum = 1, maximum = 1)]
    version: u64,
    /// The label that the host asks for; the issuer adds its domain.
    host: String,
    /// The endorsement key's certificate in DER.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    ek_certificate: String,
    /// Certificates above it that the TPM has, one after the other in DER; usually none.
    #[schema(pattern = "^([0-9a-f]{2})*$", required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ek_chain: Option<String>,
    /// `TPMT_PUBLIC` of the endorsement key.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    ek: String,
    /// `TPMT_PUBLIC` of the identity key.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    ik: String,
    /// `TPMT_PUBLIC` of the operator's key.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    policy_key: String,
    /// The policy reference of the identity key's `PolicyAuthorize`.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    policy_ref: String,
}

/// Second message, issuer to host.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEnrolmentChallenge {
    #[serde(rename = "type")]
    #[schema(pattern = "^host-enrolment-challenge$")]
    kind: String,
    #[schema(minimum = 1, maximum = 1)]
    version: u64,
    /// Which enrolment this is.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    enrolment: String,
    /// The name that the host would get.
    host: String,
    credential: Credential,
}

/// For `TPM2_ActivateCredential`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    /// `TPM2B_ID_OBJECT`.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    id_object: String,
    /// `TPM2B_ENCRYPTED_SECRET`.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    encrypted_secret: String,
}

/// Third message, host to issuer.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEnrolmentAnswer {
    #[serde(rename = "type")]
    #[schema(pattern = "^host-enrolment-answer$")]
    kind: String,
    #[schema(minimum = 1, maximum = 1)]
    version: u64,
    /// Which enrolment this is.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    enrolment: String,
    /// The secret out of the credential.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    secret: String,
}

/// Fourth message, issuer to host.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostEnrolmentCertificate {
    #[serde(rename = "type")]
    #[schema(pattern = "^host-enrolment-certificate$")]
    kind: String,
    #[schema(minimum = 1, maximum = 1)]
    version: u64,
    /// The name that the host got.
    host: String,
    /// The identity key's certificate in DER.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    certificate: String,
    /// The issuer's root in DER; nobody should trust it for having come along.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    root: String,
}

/// An operator's approval of PCR values.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HostPolicyApproval {
    #[serde(rename = "type")]
    #[schema(pattern = "^host-policy-approval$")]
    kind: String,
    /// Version 1 names no bank, and is of SHA-256.
    #[schema(minimum = 1, maximum = 2)]
    version: u64,
    /// For people: which software this is. The signature does not cover it.
    label: String,
    /// Name of the key that signed.
    #[schema(pattern = "^([0-9a-f]{2})*$")]
    policy_key: String,
    /// The PCR bank that the values are of. The signature covers it.
    #[schema(pattern = "^sha(256|384|512)$")]
    bank: Option<String>,
    /// The values approved, by number of the PCR.
    pcrs: BTreeMap<String, String>,
    /// ECDSA signature, two scalars of 32 bytes.
    #[schema(pattern = "^[0-9a-f]{128}$")]
    signature: String,
}
