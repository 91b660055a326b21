//! How it stands with the manager, as one value: what metrics and `host show` are made of.

use std::collections::BTreeMap;
use std::time::Duration;

use api_types::audit::Verified;
use guarded_state::journal::Stall;
use guarded_state::ledger::RollbackStatus;
use tenant_api::TenantApi;

use super::{Counter, Manager, Orphans, Startup, StoreState};
use crate::backend::Isolation;
use crate::evidence::HostLogProblem;
use crate::fault::Fault;
use crate::vrot::Pending;

/// How it stands with a manager that starts or serves.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether backends share the manager's user.
    pub shares_user: bool,
    /// How the last manager ended, if that was by a fault of its own.
    pub last_fault: Option<Fault>,
    /// Whether the store may be used, and what it waits for.
    pub store: StoreStatus,
    /// What only a manager knows that has store file, audit log and physical TPM.
    pub serving: Option<Serving>,
}

/// How it stands with the store.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    /// Whether it may be used.
    pub state: StoreState,
    /// How it stands with the rollback anchor; none while the store is locked.
    pub rollback: Option<RollbackStatus>,
    /// Why nothing becomes durable at the moment, if that is so.
    pub stall: Option<Stall>,
    /// Backends that go on without a manager, because the store is not open.
    pub orphans: Orphans,
}

/// How it stands with a manager that serves.
#[derive(Clone, Debug)]
pub struct Serving {
    /// vRoTs by the name of their state.
    pub vrots: BTreeMap<&'static str, u64>,
    /// vRoTs with a VMM attached.
    pub attached: u64,
    /// Backends that answered a command before its state was durable, orphans among them.
    pub degraded: u64,
    /// vRoTs that may have lost state with a degraded backend, in their present generation.
    pub lost: u64,
    /// vRoTs made ahead that wait for a VM.
    pub pool_ready: usize,
    /// Deletions that are not finished.
    pub deletions_unfinished: usize,
    /// What was counted since the manager started.
    pub events: [(Counter, u64); Counter::ALL.len()],
    /// How many follow what happens.
    pub followers: usize,
    /// The API for tenants, if it serves.
    pub tenants: Option<TenantApi>,
    /// Certificates.
    pub renewals: RenewalStatus,
    /// The store's writer and its disk.
    pub writer: WriterStatus,
    /// The physical TPM.
    pub tpm: TpmStatus,
    /// Whether the host's event log accounts for the host's PCRs.
    pub event_log: Result<(), HostLogProblem>,
    /// Host evidence.
    pub evidence: EvidenceStatus,
    /// The audit log.
    pub audit: AuditStatus,
}

/// How it stands with the audit log.
#[derive(Clone, Copy, Debug)]
pub struct AuditStatus {
    /// Its lines and files.
    pub written: Verified,
    /// Lines that the physical TPM does not vouch for yet.
    pub unvouched: u64,
    /// Whether it lacks lines that the physical TPM vouched for.
    pub is_altered: bool,
}

/// Renewals of certificates since the manager started.
#[derive(Clone, Copy, Debug)]
pub struct RenewalStatus {
    /// Certificates renewed.
    pub done: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// vRoTs whose last attempt failed.
    pub overdue: usize,
    /// First certificates of identity keys, issued beside a launch.
    pub issued: u64,
    /// vRoTs whose identity key has no certificate yet.
    pub viks_pending: u64,
    /// vRoTs whose identity key is certified and whose TLS key is not yet.
    pub tls_pending: u64,
    /// vRoTs whose other keys are certified and whose endorsement keys are not yet.
    pub eks_pending: u64,
}

/// What the store's writer has done since the manager started.
#[derive(Clone, Copy, Debug)]
pub struct WriterStatus {
    /// Batches made durable.
    pub commits: u64,
    /// Changes made durable.
    pub changes: u64,
    /// Changes that waited because their vRoT had used its share of the disk.
    pub held_back: u64,
    /// Batches that the disk did not take.
    pub failures: u64,
    /// Seconds spent waiting for the disk.
    pub seconds: f64,
    /// How often the disk was waited for.
    pub syncs: u64,
    /// Bytes written to it.
    pub written: u64,
}

/// How it stands with the physical TPM.
#[derive(Clone, Copy, Debug)]
pub struct TpmStatus {
    /// How long it has not answered, if that is longer than it may take.
    pub silence: Option<Duration>,
    /// Requests that were given up because of that.
    pub given_up: u64,
}

/// Requests for host evidence since the manager started.
#[derive(Clone, Copy, Debug)]
pub struct EvidenceStatus {
    /// Quotes of the physical TPM.
    pub quotes: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests beyond the quota of a vRoT.
    pub refused: u64,
    /// Requests that waited in vain for the identity key's certificate.
    pub uncertified: u64,
}

impl Startup {
    /// How it stands with a manager that starts.
    pub fn status(&self) -> Status {
        Status {
            shares_user: matches!(self.isolation(), Isolation::SharedUser),
            last_fault: self.last_fault().cloned(),
            store: StoreStatus {
                state: StoreState::Opening { vouched: None },
                rollback: None,
                stall: None,
                orphans: Orphans::default(),
            },
            serving: None,
        }
    }
}

impl Manager {
    /// How it stands with the manager. Waits for no TPM.
    pub async fn status(&self) -> Status {
        let store = self.store_status().await;
        let serving = self.serving(&store.orphans).await;
        Status {
            shares_user: matches!(self.isolation(), Isolation::SharedUser),
            last_fault: self.last_fault().cloned(),
            store,
            serving: Some(serving),
        }
    }

    /// How it stands with the store.
    pub async fn store_status(&self) -> StoreStatus {
        StoreStatus {
            orphans: self.fleet.orphans().await,
            state: self.guarded.store_state(),
            rollback: self.guarded.journal().rollback_status(),
            stall: self.guarded.journal().stall(),
        }
    }

    async fn serving(&self, orphans: &Orphans) -> Serving {
        let mut vrots =
            BTreeMap::from(["assigned", "running", "suspended", "stopped"].map(|state| (state, 0)));
        let (mut attached, mut degraded, mut lost) = (0, orphans.degraded, 0);
        let (mut viks_pending, mut tls_pending, mut eks_pending) = (0, 0, 0);
        for vrot in self.fleet.registry().all() {
            match vrot.pending() {
                Some(Pending::Vik) => viks_pending += 1,
                Some(Pending::Tls) => tls_pending += 1,
                Some(Pending::Eks) => eks_pending += 1,
                None => {}
            }
            let record = vrot.record();
            *vrots.entry(record.lifecycle.name()).or_insert(0) += 1;
            lost += u64::from(record.state_loss.is_some());
            if let Some(observed) = vrot.observed() {
                attached += u64::from(observed.attached);
                degraded += u64::from(observed.degraded);
            }
        }
        let (writer, evidence) = (self.guarded.journal().metrics(), self.evidence.metrics());
        let (disk, anchor) = (self.guarded.journal().store(), self.host.anchor());
        Serving {
            vrots,
            attached,
            degraded,
            lost,
            pool_ready: self.factory.ready(),
            deletions_unfinished: self.guarded.unfinished_deletions(),
            events: Counter::ALL.map(|counter| (counter, self.fleet.counters().count(counter))),
            followers: self.events.followers(),
            tenants: self.tenant_api.get().cloned(),
            renewals: RenewalStatus {
                done: self.certification.renewed(),
                failures: self.certification.failed(),
                overdue: self.certification.overdue(),
                issued: self.certification.issued(),
                viks_pending,
                tls_pending,
                eks_pending,
            },
            writer: WriterStatus {
                commits: writer.commits(),
                changes: writer.changes(),
                held_back: writer.held_back(),
                failures: writer.failures(),
                seconds: writer.seconds(),
                syncs: disk.syncs(),
                written: disk.written(),
            },
            tpm: TpmStatus {
                silence: anchor.silence(),
                given_up: anchor.given_up(),
            },
            event_log: self.evidence.log().check().await,
            evidence: EvidenceStatus {
                quotes: evidence.quotes(),
                answered: evidence.answered(),
                failed: evidence.failed(),
                refused: evidence.refused(),
                uncertified: evidence.pending(),
            },
            audit: AuditStatus {
                written: self.guarded.audit().end(),
                unvouched: self.guarded.unvouched_lines(),
                is_altered: !self.guarded.audit().missing().is_empty(),
            },
        }
    }
}
