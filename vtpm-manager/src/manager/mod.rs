//! The manager: every vRoT of this host, and what can be done with them.

mod certification;
mod counters;
mod error;
mod factory;
mod fleet;
mod guarded;
mod registry;
mod startup;
mod status;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api_types::WithCauses;
use attestation::{Anchoring, CutOff};
use cert_chain::{Digest32, VrotId};
use guarded_state::journal::Journal;
use guarded_state::ledger::AnchorPolicy;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Actor, AuditLog, Event};
use crate::backend::{Ended, GuestRole, Isolation, RuntimeFolder, Share, Zygote};
use crate::config::Config;
use crate::evidence::{HostEvidence, Subject};
use crate::fault::Fault;
use crate::host::Host;
use crate::rate_limit::Quota;
use crate::vrot::{RecordError, VrotRecord};

pub use certification::issuance::Issuance;
pub use certification::renewal::Renewals;
pub use counters::{Counter, Counters};
pub use error::ManagerError;
pub use factory::pool::Pool;
pub use fleet::orphans::Orphans;
pub use fleet::transitions::{Launch, Order};
pub use guarded::deletions::Deletions;
pub use guarded::store_state::{StoreState, Vouched};
pub use registry::{Registry, Vrot};
pub use startup::Startup;
pub use status::{
    EvidenceStatus, RenewalStatus, Serving, Status, StoreStatus, TpmStatus, WriterStatus,
};

use certification::renewal;
use factory::{manufacturing, pool};
use fleet::{losses, orphans, takeover};
use guarded::opening;
use guarded::store_state::StoreGate;
use startup::Opened;

/// All that a running manager consists of.
#[derive(Debug)]
pub struct Manager {
    /// Background tasks, joined when the manager ends.
    tasks: TaskTracker,
    /// Cancelled when the manager ends.
    ending: CancellationToken,
    config: Config,
    host: Host,
    journal: Journal,
    evidence: HostEvidence,
    audit: Arc<AuditLog>,
    registry: Registry,
    pool: Arc<Pool>,
    deletions: Deletions,
    renewals: Renewals,
    issuance: Issuance,
    zygote: Zygote,
    /// One permit for each vRoT that may be in manufacture at the same time.
    manufacturing: Arc<Semaphore>,
    /// Digest of this program.
    program: Digest32,
    ended: mpsc::UnboundedSender<(VrotId, Ended)>,
    counters: Counters,
    store: StoreGate,
    orphans: Mutex<orphans::Seen>,
    /// How the last manager ended, if that was by a fault of its own.
    last_fault: Option<Fault>,
    /// The state folder, locked.
    _claim: File,
}

/// What it takes to part from the backends, all at once: longer than the store takes to give up what
/// does not become durable.
const PARTING: Duration = Duration::from_secs(12);
/// What is still under way after that: the end of a backend that is being recorded, or a backend of
/// an earlier manager that does not answer.
const LAST_TASKS: Duration = Duration::from_secs(1);

impl Manager {
    fn new(startup: Startup, opened: Opened) -> Arc<Self> {
        let Startup {
            config,
            isolation,
            program,
            last_fault,
            claim,
        } = startup;
        let Opened {
            journal,
            audit,
            anchor,
            host,
        } = opened;
        let (ended, endings) = mpsc::unbounded_channel();
        let manager = Arc::new(Self {
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            evidence: HostEvidence::start(anchor, &config.event_log),
            zygote: Zygote::of(&config.backend, config.vmms.clone(), isolation),
            manufacturing: Arc::new(Semaphore::new(manufacturing::AT_A_TIME)),
            config,
            host,
            journal,
            audit,
            registry: Registry::default(),
            pool: Arc::new(Pool::default()),
            deletions: Deletions::default(),
            renewals: Renewals::default(),
            issuance: Issuance::default(),
            program,
            ended,
            counters: Counters::default(),
            store: StoreGate::new(),
            orphans: Mutex::default(),
            last_fault,
            _claim: claim,
        });
        manager.until_the_end(takeover::note_endings(Arc::clone(&manager), endings));
        manager
    }

    /// Opens the store and takes over what is running, and from then on does what has to be done
    /// without an order. Returns when the store was looked at: it is open, or is tried again.
    pub async fn start_serving(self: &Arc<Self>) {
        let started = Event::ManagerStarted {
            manager: self.program,
        };
        self.record_or_keep(vec![started]).await;
        if let Err(error) = self.open_store().await {
            tracing::error!(
                error = %WithCauses(&error),
                "no vRoT can be created or started; running ones go on, degraded"
            );
        }
        self.until_the_end(opening::keep_trying(Arc::clone(self)));
        self.until_the_end(pool::keep_full(Arc::clone(self)));
        self.until_the_end(renewal::keep_fresh(Arc::clone(self)));
    }

    /// Does something in the background until the manager ends: then it is given up where it is,
    /// as by a crash.
    fn until_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tasks
            .spawn(async move { ending.run_until_cancelled_owned(work).await });
    }

    /// The manager is about to end: what disk and TPM do not take within this time is given up,
    /// so that the end does not wait for them.
    pub fn end_within(&self, time: Duration) {
        self.journal.end_within(time);
    }

    /// Ends the manager's work: running vRoTs go on, and what they pushed becomes durable.
    pub async fn close(&self) -> Result<(), ManagerError> {
        self.ending.cancel();
        self.tasks.close();
        self.renewals.close().await;
        let mut partings = JoinSet::new();
        for vrot in self.registry.all() {
            if let Some(backend) = vrot.backend() {
                partings.spawn(async move { backend.release().await });
            }
        }
        let parted = async { tokio::join!(self.pool.close(), partings.join_all()) };
        if timeout(PARTING, parted).await.is_err() {
            tracing::warn!("a backend is left as it is: it keeps what was not made durable");
        }
        if timeout(LAST_TASKS, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.len(),
                "what is under way is left to the next manager"
            );
        }
        self.record(Event::ManagerStopped).await
    }

    /// Where the backend of a vRoT listens.
    pub fn folder(&self, vrot: VrotId) -> RuntimeFolder {
        RuntimeFolder::of(&self.config.runtime_dir, &self.config.locks(), vrot)
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// All vRoTs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Digest of this program.
    pub fn program_digest(&self) -> Digest32 {
        self.program
    }

    /// Digest of the program that backends are.
    pub async fn backend_digest(&self) -> Result<Digest32, ManagerError> {
        let program = self.zygote.executable().await?;
        let digest = (program.digest).get_or_try_init(|| digest_of_file(&program.path));
        digest.await.copied()
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        self.zygote.isolation()
    }

    /// The store's writer.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The evidence service.
    pub fn evidence(&self) -> &HostEvidence {
        &self.evidence
    }

    /// The audit log.
    pub fn audit(&self) -> &Arc<AuditLog> {
        &self.audit
    }

    /// How the last manager ended, if that was by a fault of its own.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.last_fault.as_ref()
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes a line into the audit log.
    pub async fn record(&self, event: Event) -> Result<(), ManagerError> {
        self.record_all(vec![event]).await
    }

    /// Writes lines of what has happened anyway: a disk that does not take them gets them with
    /// the next line, and the manager serves meanwhile.
    async fn record_or_keep(&self, events: Vec<Event>) {
        let audit = Arc::clone(&self.audit);
        let recorded = blocking(move || audit.append_or_keep(&events)).await;
        if let Err(error) = recorded.and_then(|appended| Ok(appended?)) {
            tracing::error!(error = %WithCauses(&error), "the audit log waits for the disk");
        }
    }

    /// Writes lines into the audit log, in one go.
    async fn record_all(&self, events: Vec<Event>) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        let actor = Actor::current();
        Ok(blocking(move || audit.append(actor, &events)).await??)
    }

    /// No guest is served before the store is open, and while it is, nothing changes here.
    fn cut_off(&self) -> CutOff {
        let power_loss = self.store.vouched().and_then(|vouched| vouched.power_loss);
        power_loss.map_or(CutOff::Excluded, |loss| CutOff::Possible {
            batch: loss.batch.number(),
            time: loss.time.number(),
            window_s: loss.window.seconds(),
        })
    }

    /// What a backend with this vRoT's guest needs. `certified` tells when the vRoT's identity key
    /// is.
    fn guest_role(
        &self,
        record: &VrotRecord,
        certified: watch::Receiver<bool>,
    ) -> Result<Box<GuestRole>, RecordError> {
        let vrot = record.vrot;
        Ok(Box::new(GuestRole {
            journal: self.journal.clone(),
            evidence: self.evidence.clone(),
            subject: Subject {
                vm: record.vm,
                vrot,
                tenant: record.tenant.clone(),
                generation: record.generation,
                vik: record.identity.vik(vrot)?.name(),
                eks: record.identity.ek_names(vrot)?,
                anchoring: anchoring(self.config.anchor_policy),
                cut_off: self.cut_off(),
                state_loss: losses::stated(record.state_loss),
            },
            quota: Quota::per_minute(self.config.host_evidence_per_minute, Instant::now()),
            share: Share::new(
                self.config.state_changes_per_second,
                Duration::from_millis(self.config.durability_deadline_ms.into()),
                Instant::now(),
            ),
            ended: self.ended.clone(),
            certified,
        }))
    }
}

fn anchoring(policy: AnchorPolicy) -> Anchoring {
    match policy {
        AnchorPolicy::Strict => Anchoring::Strict,
        AnchorPolicy::Checkpoint(interval) => Anchoring::Checkpoint(interval.seconds()),
    }
}

/// Runs what blocks on a thread where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ManagerError> {
    spawn_blocking(work)
        .await
        .map_err(|source| ManagerError::Task { source })
}

async fn digest_of_file(path: &Path) -> Result<Digest32, ManagerError> {
    let contents = tokio::fs::read(path)
        .await
        .map_err(|source| ManagerError::Program {
            path: path.to_owned(),
            source,
        })?;
    blocking(move || Digest32::of(&contents)).await
}
