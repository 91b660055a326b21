//! The manager: every vRoT of this host, and what can be done with them.

mod error;
mod guarding;
mod manufacturing;
mod pool;
mod registry;
mod renewal;
mod restart;
mod transitions;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Instant;

use cert_chain::Digest32;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::anchor::TrustAnchor;
use crate::audit::{AuditLog, Event};
use crate::backend::{Ended, GuestDuty, Isolation, Nursery};
use crate::causes::WithCauses;
use crate::config::Config;
use crate::evidence::{HostEvidence, Quota, Subject};
use crate::host::Host;
use crate::rollback::Boot;
use crate::store::{EmbeddedStore, Journal, Store};
use crate::vrot::{RecordError, VrotRecord};

pub use error::ManagerError;
pub use guarding::Standing;
pub use pool::Pool;
pub use registry::{Registry, Vrot, VrotKey};
pub use renewal::Renewals;
pub use transitions::{Launch, Order};

/// All that a running manager consists of.
#[derive(Debug)]
pub struct Manager {
    config: Config,
    host: Host,
    journal: Journal,
    evidence: HostEvidence,
    audit: Arc<AuditLog>,
    registry: Registry,
    pool: Arc<Pool>,
    renewals: Renewals,
    nursery: Nursery,
    /// Digest of this program.
    program: Digest32,
    ended: mpsc::UnboundedSender<(cert_chain::VrotId, Ended)>,
    counters: Counters,
    /// Whether the store may be used.
    standing: RwLock<Standing>,
    /// Set once the store's ledger is open: how the host came up.
    unlocked: OnceLock<Boot>,
    /// Whether `host init` was called since the manager started.
    initialisation_ordered: AtomicBool,
    /// Held by whoever opens, sets up or recovers the store.
    opening: tokio::sync::Mutex<()>,
}

/// What has happened since the manager started.
#[derive(Debug, Default)]
pub struct Counters {
    created: AtomicU64,
    started: AtomicU64,
    stopped: AtomicU64,
    deleted: AtomicU64,
    backends_ended: AtomicU64,
    refused: AtomicU64,
}

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// vRoTs manufactured.
    Created,
    /// vRoTs started.
    Started,
    /// vRoTs stopped on demand.
    Stopped,
    /// vRoTs deleted.
    Deleted,
    /// Backends that ended by themselves.
    BackendsEnded,
    /// Requests refused.
    Refused,
}

impl Counter {
    /// Everything that is counted.
    pub const ALL: [Self; 6] = [
        Self::Created,
        Self::Started,
        Self::Stopped,
        Self::Deleted,
        Self::BackendsEnded,
        Self::Refused,
    ];
}

impl Manager {
    /// Opens store, audit log and trust anchor, and takes over what is running.
    pub async fn open(config: Config) -> Result<Arc<Self>, ManagerError> {
        make_folder(&config.state_dir, 0o700)?;
        // Allowed users must get through to the API's socket; each vRoT's folder is the manager's.
        make_folder(&config.runtime_dir, 0o711)?;
        // Opened first: it is locked, so a second manager ends here.
        let store_file = config.store();
        let store = blocking(move || EmbeddedStore::open(&store_file)).await??;
        let journal = Journal::start_locked(Arc::new(store) as Arc<dyn Store>)
            .map_err(|source| ManagerError::Thread { source })?;
        let audit_file = config.audit_log();
        let audit = Arc::new(blocking(move || AuditLog::open(&audit_file)).await??);
        let anchor_config = config.anchor.clone();
        let anchor = blocking(move || TrustAnchor::start(&anchor_config)).await??;
        let host = Host::new(anchor.clone(), &config.host_certificate())?;
        let program = digest_of_file(Path::new("/proc/self/exe")).await?;
        let isolation = Isolation::of(config.backend_uids, &config.runtime_dir)?;
        let (ended, endings) = mpsc::unbounded_channel();
        let manager = Arc::new(Self {
            evidence: HostEvidence::start(anchor, &config.event_log),
            nursery: Nursery::of(&config.backend, isolation),
            config,
            host,
            journal,
            audit,
            registry: Registry::default(),
            pool: Arc::new(Pool::default()),
            renewals: Renewals::default(),
            program,
            ended,
            counters: Counters::default(),
            standing: RwLock::new(Standing::Blank),
            unlocked: OnceLock::new(),
            initialisation_ordered: AtomicBool::new(false),
            opening: tokio::sync::Mutex::new(()),
        });
        manager
            .record(Event::ManagerStarted { manager: program })
            .await?;
        if let Err(error) = manager.open_store().await {
            tracing::error!(
                error = %WithCauses(&error),
                "no vRoT can be created or started; running ones go on, degraded"
            );
        }
        tokio::spawn(restart::note_endings(Arc::downgrade(&manager), endings));
        tokio::spawn(pool::keep_full(Arc::downgrade(&manager)));
        tokio::spawn(renewal::keep_fresh(Arc::downgrade(&manager)));
        Ok(manager)
    }

    /// Ends the manager's work: running vRoTs go on, and what they pushed becomes durable.
    pub async fn close(&self) -> Result<(), ManagerError> {
        self.renewals.close().await;
        self.pool.close().await;
        for vrot in self.registry.all() {
            if let Some(backend) = vrot.backend() {
                backend.release().await;
            }
        }
        self.record(Event::ManagerStopped).await
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
        let program = self.nursery.executable().await?;
        digest_of_file(&program).await
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        self.nursery.isolation()
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

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes a line into the audit log.
    pub async fn record(&self, event: Event) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.append(&[event])).await??)
    }

    /// Writes lines into the audit log, in one go.
    async fn record_all(&self, events: Vec<Event>) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        Ok(blocking(move || audit.append(&events)).await??)
    }

    fn guest_duty(&self, record: &VrotRecord) -> Result<Box<GuestDuty>, RecordError> {
        let vrot = record.vrot;
        Ok(Box::new(GuestDuty {
            journal: self.journal.clone(),
            evidence: self.evidence.clone(),
            subject: Subject {
                vm: record.vm,
                vrot,
                tenant: record.tenant.clone(),
                generation: record.generation,
                vik: record.identity.vik(vrot)?.name(),
                eks: record.identity.ek_names(vrot)?,
            },
            quota: Quota::per_minute(self.config.host_evidence_per_minute, Instant::now()),
            ended: self.ended.clone(),
        }))
    }
}

impl Counters {
    /// How often it happened.
    pub fn count(&self, counter: Counter) -> u64 {
        self.cell(counter).load(Ordering::Relaxed)
    }

    /// It happened once more.
    pub fn increment(&self, counter: Counter) {
        self.cell(counter).fetch_add(1, Ordering::Relaxed);
    }

    fn cell(&self, counter: Counter) -> &AtomicU64 {
        match counter {
            Counter::Created => &self.created,
            Counter::Started => &self.started,
            Counter::Stopped => &self.stopped,
            Counter::Deleted => &self.deleted,
            Counter::BackendsEnded => &self.backends_ended,
            Counter::Refused => &self.refused,
        }
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

/// Makes a folder with this mode; one that exists keeps its own.
fn make_folder(path: &Path, mode: u32) -> Result<(), ManagerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| ManagerError::Folder {
            path: path.to_owned(),
            source,
        })
}

async fn digest_of_file(path: &Path) -> Result<Digest32, ManagerError> {
    let contents = tokio::fs::read(path)
        .await
        .map_err(|source| ManagerError::Program {
            path: path.to_owned(),
            source,
        })?;
    Ok(Digest32::of(&contents))
}
