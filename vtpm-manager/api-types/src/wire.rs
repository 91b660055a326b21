//! What travels as JSON between the manager and its clients, `vtpmctl` among them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cert_chain::pcr::PcrValuesError;
use cert_chain::{
    Digest32, Generation, HashAlgorithm, HostName, PcrValues, Tenant, TpmName, VmId, VrotId,
};
use serde::{Deserialize, Serialize};

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

/// The store, held against the rollback anchor in the physical TPM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StoreView {
    /// `opening` (the manager has just started), `blank`, `open`, `locked` (the root secret is out of
    /// reach) or `refused`.
    pub state: String,
    /// Short name of the refusal: what `POST /v1/host/recover` accepts.
    pub refusal: Option<String>,
    /// What is wrong and what to do about it.
    pub problem: Option<String>,
    /// Number of the newest batch.
    pub batch: Option<u64>,
    /// Batches of changes that a loss of power could cut off now.
    pub uncovered_batches: Option<u64>,
    /// Changes older than this cannot be cut off; 0 under the policy `strict`.
    pub window_s: Option<u64>,
    /// Age in seconds of the oldest change that a loss of power could cut off now.
    pub window_age_s: Option<u64>,
    /// `strict` or `checkpoint`: when the physical TPM vouches durably for what is new.
    pub policy: Option<String>,
    /// How the host came up: `continued`, `after-shutdown`, `after-power-loss`, or `unfinished`
    /// while it was being set up or recovered.
    pub boot: Option<String>,
    /// The last loss of power that may have cut off state, until a recovery gives all vRoTs a new
    /// generation.
    pub power_loss: Option<PowerLossView>,
    /// Backends that go on without a manager, because the store is not open.
    #[serde(default)]
    pub unadopted: u64,
    /// How many of them answered a command before its state was durable.
    #[serde(default)]
    pub unadopted_degraded: u64,
}

/// A loss of power that may have cut off the newest state unseen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PowerLossView {
    /// Number of the first batch afterwards.
    pub batch: u64,
    /// When that was, in seconds since 1970.
    pub time: u64,
    /// Changes this old or younger, in seconds, may be missing.
    pub window_s: u64,
}

/// Accepts a store that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// Short name of the refusal, as the host shows it.
    #[cfg_attr(feature = "schema", schema(example = "restored-store"))]
    pub accept: String,
}

/// What a recovery did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RecoveryView {
    /// What was accepted.
    pub accepted: String,
    /// What had been found.
    pub finding: String,
    /// Number of the batch that the recovery is.
    pub batch: u64,
    /// The generation that the vRoTs have from now on.
    pub generation: Generation,
    /// vRoTs that have it.
    pub raised: Vec<VrotId>,
    /// Deleted vRoTs whose records had come back, and went.
    pub discarded: Vec<VrotId>,
    /// vRoTs of which nothing usable was left.
    pub lost: Vec<VrotId>,
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

/// What the host's keys are bound to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// Name of the key whose approvals count.
    pub policy_key: TpmName,
    /// Digest of the `PolicyAuthorize` that the objects below carry.
    pub policy_digest: Digest32,
    /// What is bound to it.
    pub objects: Vec<String>,
    /// The PCR bank that approvals and quotes are of.
    pub bank: HashAlgorithm,
    /// Present values of the PCRs that approvals are about, in hexadecimal.
    pub pcrs: BTreeMap<u8, String>,
    /// Whether an approval covers the present values.
    pub satisfied: bool,
    /// What was approved, oldest first.
    pub approvals: Vec<ApprovalView>,
}

impl PolicyView {
    /// The present values, as an approval takes them.
    pub fn values(&self) -> Result<PcrValues, PcrValuesError> {
        let values = self.pcrs.iter().map(|(pcr, value)| (*pcr, value.as_str()));
        PcrValues::from_hex(self.bank, values)
    }
}

/// One approval beside the present state of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ApprovalView {
    /// What the note in it calls it. The signature does not cover the note.
    pub label: String,
    /// The PCR bank that it is of.
    pub bank: HashAlgorithm,
    /// Where the PCRs differ from it; nowhere, if it is in force.
    pub differences: Vec<DifferenceView>,
}

/// One PCR that has another value than approved.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DifferenceView {
    /// Which PCR.
    pub pcr: u8,
    /// Its value now, in hexadecimal.
    pub found: String,
    /// The value in the approval, if it covers the PCR in this bank.
    pub approved: Option<String>,
}

/// What is to be created.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The VM. Without it the manager chooses the number, which a vRoT of the pool is certified
    /// for already; otherwise the identity is pending for as long as the physical TPM needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether to start it, too.
    #[serde(default)]
    pub start: bool,
}

/// One vRoT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VrotView {
    /// Its number.
    pub vrot: VrotId,
    /// The VM that it belongs to.
    pub vm: VmId,
    /// Whose VM that is.
    pub tenant: Tenant,
    /// What people call it.
    pub name: Option<String>,
    /// Rises with each sanctioned restore or copy.
    pub generation: Generation,
    /// Where in its life it is: `assigned`, `running`, `suspended` or `stopped`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// What else there is to say about the state.
    pub note: Option<String>,
    /// State that its guest was told of and that may have been lost with a backend, until the vRoT
    /// has a new generation: evidence says so, and a policy accepts it by `batch`.
    pub state_loss: Option<StateLossView>,
    /// Name of its identity key.
    pub vik: Option<TpmName>,
    /// Whether the identity key is certified: without that certificate the VM gets no evidence.
    pub vik_certificate: CertificateState,
    /// Whether the endorsement keys are certified, which follows when the physical TPM has nothing
    /// more urgent to sign.
    pub ek_certificates: CertificateState,
    /// Last second of the identity key's certificate.
    pub vik_not_after: Option<Timestamp>,
    /// Why the last attempt to issue or renew a certificate failed, until one succeeds.
    pub renewal_problem: Option<String>,
    /// Its backend, while it runs.
    pub backend: Option<BackendView>,
}

/// Whether there is a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CertificateState {
    /// It is still to be signed by the physical TPM, or written into the vRoT, which happens while
    /// the VM runs.
    Pending,
    /// It is there, and the guest can read it.
    Issued,
}

/// State that may have been lost with a backend.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StateLossView {
    /// Number of the store's newest batch when it was noted.
    pub batch: u64,
    /// When it was noted.
    pub at: Timestamp,
}

/// A live backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BackendView {
    /// Its process.
    pub process: u32,
    /// Where a VMM attaches (TPM emulator protocol).
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub control: PathBuf,
    /// Whether one is attached.
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    pub degraded: bool,
}

/// All vRoTs of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VrotList {
    /// In the order of their numbers.
    pub vrots: Vec<VrotView>,
}

/// Keys and certificates of a vRoT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct IdentityView {
    /// Its number.
    pub vrot: VrotId,
    /// The VM that it belongs to.
    pub vm: VmId,
    /// Whose VM that is.
    pub tenant: Tenant,
    /// Its generation.
    pub generation: Generation,
    /// The host that certified it.
    pub host: Option<HostName>,
    /// Its identity key.
    pub vik: KeyView,
    /// Its RSA-2048 endorsement key.
    pub ek_rsa: KeyView,
    /// Its P-256 endorsement key.
    pub ek_p256: KeyView,
    /// SHA-256 value of the manager program that certified the identity key.
    pub manager_digest: Digest32,
    /// SHA-256 value of the backend program at that time.
    pub backend_digest: Digest32,
    /// The host's certificate, which issued the others. The issuer's root is not part of it.
    pub chain_pem: String,
}

/// One key and its certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeyView {
    /// The TPM's name of the key.
    pub name: TpmName,
    /// The public key.
    pub public_key_pem: String,
    /// `TPMT_PUBLIC` in hexadecimal.
    pub public_area: String,
    /// Whether it is certified.
    pub state: CertificateState,
    /// Its certificate; none while that is pending.
    pub certificate_pem: Option<String>,
    /// Last second of the certificate.
    pub not_after: Option<Timestamp>,
}

/// Arguments that attach a vRoT to QEMU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QemuArguments {
    /// To be passed to QEMU one by one.
    pub arguments: Vec<String>,
}

/// How the guest sees its TPM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TpmDeviceModel {
    /// Command response buffer.
    #[default]
    TpmCrb,
    /// TPM interface specification (FIFO).
    TpmTis,
}

/// The audit log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditView {
    /// The file of the newest part.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub log: PathBuf,
    /// The hash that the log goes on from, or has in it, if parts of it were taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins_after: Option<Digest32>,
    /// Number of lines that the manager knows of, with those of parts that were taken away.
    pub entries: u64,
    /// Number of files.
    pub parts: u64,
    /// Their size.
    pub bytes: u64,
    /// Hash of the last one. Kept elsewhere, it shows later that nothing was cut off.
    pub head: Digest32,
    /// Whether the files hold exactly these lines, unaltered.
    pub intact: bool,
    /// What is wrong with them otherwise.
    pub problem: Option<String>,
}

impl TpmDeviceModel {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TpmCrb => "tpm-crb",
            Self::TpmTis => "tpm-tis",
        }
    }
}
