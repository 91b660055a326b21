//! What the log tells.

use std::collections::BTreeMap;

use api_types::Timestamp;
use cert_chain::{Digest32, Generation, HashAlgorithm, HostName, Tenant, TpmName, VmId, VrotId};
use guarded_state::ledger::{Boot, RecoveryRecord};
use serde::Serialize;

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// An operator accepts that lines are missing which the physical TPM vouched for.
    AuditLogAccepted {
        /// How many lines there were.
        lines: u64,
        /// The hash of the last of them.
        head: Digest32,
    },
    /// The log does not have the line that the physical TPM vouches for as the newest one: it was
    /// rewritten, cut off, put back or taken away while no manager ran. What follows are the lines
    /// that were found.
    AuditLogAltered {
        /// How many lines there were.
        lines: u64,
        /// The hash of the last of them.
        head: Digest32,
        /// What was found.
        finding: BoundedText,
    },
    /// A backend was found running and taken over.
    BackendAdopted {
        /// Whose.
        vrot: VrotId,
    },
    /// A backend ended that nobody had stopped.
    BackendEnded {
        /// Whose.
        vrot: VrotId,
        /// What is known of it.
        reason: BoundedText,
    },
    /// A vRoT's identity key got its first certificate, beside its launch.
    CertificateIssued {
        /// Whose.
        vrot: VrotId,
        /// SHA-256 value of the certificate.
        certificate: Option<Digest32>,
    },
    /// A vRoT's identity key got a new certificate, and so did its TLS key, unless that of the TLS
    /// key is pending.
    CertificateRenewed {
        /// Whose.
        vrot: VrotId,
        /// SHA-256 value of the certificate.
        certificate: Digest32,
        /// SHA-256 value of the TLS key's certificate.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls_certificate: Option<Digest32>,
    },
    /// A vRoT's identity key got no new certificate. It is tried again; while the reason stays
    /// the same, there is one line.
    CertificateRenewalFailed {
        /// Whose.
        vrot: VrotId,
        /// Why.
        reason: BoundedText,
    },
    /// Certificate indices of a vRoT held something else than the manager had written there.
    CertificatesRestored {
        /// Whose.
        vrot: VrotId,
        /// Which.
        indices: BoundedText,
    },
    /// A vRoT's endorsement keys got their first certificates, beside its guest.
    EndorsementKeysCertified {
        /// Whose.
        vrot: VrotId,
        /// SHA-256 value of the RSA key's certificate.
        ek_rsa: Digest32,
        /// SHA-256 value of the P-256 key's certificate.
        ek_p256: Digest32,
    },
    /// Which folder of the host a vRoT belongs to was noted.
    FolderNoted {
        /// Whose.
        vrot: VrotId,
        /// The folder.
        folder: BoundedText,
        /// Whether it is known which file in it is the vRoT's; else the next with the right token is.
        is_certain: bool,
    },
    /// A vRoT's folder is gone, and another one stands in its place: the vRoT is deleted.
    FolderVanished {
        /// Whose.
        vrot: VrotId,
        /// The folder.
        folder: BoundedText,
    },
    /// The host's keys were made, or found to be there.
    HostInitialised {
        /// Name of the operator's key.
        policy_key: TpmName,
    },
    /// The issuer certified the host.
    HostEnrolled {
        /// Its name.
        host: HostName,
    },
    /// What a VM is launched with was measured, for the next start of its vRoT.
    LaunchMeasured {
        /// Whose.
        vrot: VrotId,
        /// The digest over all parts, as evidence has it.
        digest: Digest32,
        /// The parts with their values.
        parts: BTreeMap<String, String>,
    },
    /// What was measured for the next start does not count any more.
    LaunchForgotten {
        /// Whose.
        vrot: VrotId,
    },
    /// The manager runs.
    ManagerStarted {
        /// Digest of its program.
        manager: Digest32,
    },
    /// The manager ends.
    ManagerStopped,
    /// The launcher of a vRoT's VM has other PCR banks active in it, from its next start on.
    PcrBanksChanged {
        /// Whose.
        vrot: VrotId,
        /// Those that are active from then on.
        banks: Vec<HashAlgorithm>,
    },
    /// The operator approved PCR values.
    PolicyApproved {
        /// What the note in the approval calls them. The signature does not cover the note.
        label: BoundedText,
    },
    /// The store holds a recovery of which this log does not tell: the manager that an operator
    /// had ordered it from ended right after it. What was ordered stands in the line before.
    RecoveryFound {
        /// Number of the batch that the recovery is.
        batch: u64,
        /// The generation that it gave out.
        generation: Generation,
    },
    /// An operator orders that the present store be accepted.
    RecoveryOrdered {
        /// What is to be accepted.
        accepted: BoundedText,
    },
    /// Somebody asked for something and did not get it.
    Refused {
        /// The caller's user id.
        uid: u32,
        /// What was asked for.
        request: BoundedText,
        /// Why it was refused.
        reason: BoundedText,
    },
    /// A tenant asked with a certificate that had not come since the manager started.
    TenantAdmitted {
        /// The tenant.
        tenant: Tenant,
        /// The certificate's serial number.
        certificate: BoundedText,
        /// From where.
        address: BoundedText,
    },
    /// Somebody was not admitted to the API for tenants.
    TenantRefused {
        /// From where.
        address: BoundedText,
        /// Why.
        reason: BoundedText,
    },
    /// A vRoT's TLS key got its first certificate, beside its guest.
    TlsKeyCertified {
        /// Whose.
        vrot: VrotId,
        /// SHA-256 value of the certificate.
        certificate: Digest32,
    },
    /// The physical TPM vouches for the store.
    StoreOpened {
        /// Its newest batch.
        batch: u64,
        /// How the host came up.
        boot: Boot,
    },
    /// The present store was accepted on an operator's order.
    StoreRecovered {
        /// What was done.
        recovery: RecoveryRecord,
    },
    /// The store is not the one that the physical TPM vouches for.
    StoreRefused {
        /// Short name of the reason.
        code: &'static str,
        /// What was found.
        finding: BoundedText,
    },
    /// A vRoT was manufactured for a VM.
    VrotCreated {
        /// Its number.
        vrot: VrotId,
        /// The VM.
        vm: VmId,
        /// Whose VM it is.
        tenant: Tenant,
        /// Its generation.
        generation: Generation,
        /// Name of its identity key.
        vik: TpmName,
        /// SHA-256 value of the identity key's certificate; none while that is pending.
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<Digest32>,
    },
    /// The vRoT that is created is the TPM that its VM had elsewhere: until then, its secrets were not
    /// guarded by this host's physical TPM.
    VrotImported {
        /// Its number.
        vrot: VrotId,
        /// The VM.
        vm: VmId,
        /// Name of its RSA endorsement key, which it had before.
        ek_rsa: TpmName,
    },
    /// A vRoT was made ahead, and its identity key certified. It belongs to no VM yet.
    VrotManufactured {
        /// Its number.
        vrot: VrotId,
        /// Name of its identity key.
        vik: TpmName,
        /// SHA-256 value of the identity key's certificate.
        certificate: Option<Digest32>,
    },
    /// A vRoT's key was destroyed. The line may be of a manager that finished what an earlier one,
    /// which ended meanwhile, had begun.
    VrotDeleted {
        /// Its number.
        vrot: VrotId,
        /// The VM it belonged to.
        vm: VmId,
        /// Whose VM that was.
        tenant: Tenant,
        /// When the key was destroyed.
        deleted_at: Timestamp,
    },
    /// A vRoT that no VM ever had was destroyed, with its key.
    VrotDiscarded {
        /// Its number.
        vrot: VrotId,
    },
    /// The store has a vRoT in another state than the lines before tell: what the last of them
    /// tells of did not become durable, because the manager ended or the store did not take it, or
    /// a recovery undid it.
    VrotFound {
        /// Its number.
        vrot: VrotId,
        /// Its state in the store; `absent`, if there is no such vRoT.
        state: &'static str,
        /// SHA-256 value of the identity key's certificate in the store; none while it is pending.
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<Digest32>,
    },
    /// A backend ended after it had answered commands whose state was not durable: what they
    /// changed may be gone. Evidence of the vRoT says so from now on.
    StateLost {
        /// Whose.
        vrot: VrotId,
        /// Number of the store's newest batch.
        batch: u64,
    },
    /// A backend serves a vRoT.
    VrotStarted {
        /// Its number.
        vrot: VrotId,
    },
    /// A suspended vRoT goes on.
    VrotResumed {
        /// Its number.
        vrot: VrotId,
    },
    /// The TPM of a running vRoT was to be reset on demand: its PCRs are as at a start.
    VrotReset {
        /// Its number.
        vrot: VrotId,
    },
    /// A vRoT was stopped, and its volatile state kept.
    VrotSuspended {
        /// Its number.
        vrot: VrotId,
    },
    /// A vRoT was stopped on demand.
    VrotStopped {
        /// Its number.
        vrot: VrotId,
    },
}

/// Text for people, some of it from outside: what is too long is cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BoundedText(String);

/// Characters of a text that somebody else may have chosen.
const MAX_TEXT: usize = 512;

impl<T: Into<String>> From<T> for BoundedText {
    fn from(text: T) -> Self {
        let mut text = text.into();
        if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
            text.truncate(end);
            text.push('…');
        }
        Self(text)
    }
}
