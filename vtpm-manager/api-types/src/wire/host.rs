//! The host: its physical TPM, its keys and its enrolment.

use std::path::PathBuf;

use cert_chain::{Digest32, HostName, TpmName};
use serde::{Deserialize, Serialize};

use super::store::StoreView;
use crate::timestamp::Timestamp;

/// The host and what it has become.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostView {
    /// How the manager reaches the physical TPM.
    #[cfg_attr(feature = "schema", schema(example = "device:/dev/tpmrm0"))]
    pub tpm: String,
    /// Why it cannot be used, if it cannot: then the keys are those that it showed before.
    #[serde(default)]
    pub tpm_problem: Option<String>,
    /// The log that accounts for the host's PCRs in evidence.
    pub event_log: EventLogView,
    /// Where the manager keeps what must survive.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub state_dir: PathBuf,
    /// SHA-256 value of the backend program that `create` and `start` use.
    pub backend_digest: Option<Digest32>,
    /// What keeps backends apart beside their sandbox: `own-users`, or `shared-user` where the
    /// manager has no right to give each a user of its own.
    pub isolation: String,
    /// SHA-256 value of the manager program.
    pub manager_digest: Digest32,
    /// The keys in the physical TPM; absent before `POST /v1/host/init`, and while they are not
    /// known (`tpm_problem`).
    pub keys: Option<HostKeys>,
    /// What the issuer certified; absent before the host is enrolled, and while the manager starts.
    pub enrolment: Option<EnrolmentView>,
    /// Whether the physical TPM vouches for the store.
    pub store: StoreView,
    /// What is wrong with the audit log: it lacks lines that the physical TPM vouched for.
    #[serde(default)]
    pub audit_problem: Option<String>,
    /// What is missing from the manager's log.
    #[serde(default)]
    pub log: LogView,
    /// How the last manager ended, if that was by a fault of its own (a panic).
    pub last_fault: Option<FaultView>,
}

/// Where and when a manager ended by a fault of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FaultView {
    /// When, by the host's clock.
    pub time: Timestamp,
    /// Where in the manager's sources.
    pub place: String,
}

/// Lines that are missing from the manager's log since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogView {
    /// Lines that could not be written, or not as fast as they came.
    pub lost: u64,
    /// Lines that were too many of a kind.
    pub left_out: u64,
}

/// The host's event log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EventLogView {
    /// The file.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub path: PathBuf,
    /// Why devices refuse every VM of this host: the log cannot be read, is none, or does not
    /// account for the host's PCRs.
    pub problem: Option<String>,
    /// Why it is not known yet whether it accounts for them, if it is not.
    #[serde(default)]
    pub unchecked: Option<String>,
    /// The quoted PCRs that the log does not account for.
    #[serde(default)]
    pub unaccounted_pcrs: Vec<u8>,
}

/// Names (nameAlg ‖ digest, in hexadecimal) of the host's keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostKeys {
    /// Endorsement key.
    pub ek: TpmName,
    /// Identity key.
    pub ik: TpmName,
    /// Storage root key.
    pub srk: TpmName,
    /// The operator's key.
    pub policy_key: TpmName,
}

/// The host's certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EnrolmentView {
    /// The name that the issuer gave the host.
    pub host: HostName,
    /// Who issued it.
    pub issuer: String,
    /// First second of its validity.
    pub not_before: Timestamp,
    /// Last second of its validity.
    pub not_after: Timestamp,
    /// The certificate.
    pub certificate_pem: String,
    /// The issuer's root, as it came along: whoever trusts it must know it from elsewhere.
    pub root_pem: String,
}

/// Begins a host's life.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// `TPMT_PUBLIC` of the operator's key, in hexadecimal.
    pub policy_key: String,
}

/// Begins an enrolment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// The label that the host asks for; the issuer adds its domain.
    #[cfg_attr(feature = "schema", schema(example = "host-1"))]
    pub name: String,
}
