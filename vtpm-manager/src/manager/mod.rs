//! The manager: every vRoT of this host, and what can be done with them.
//!
//! It is made of owners. Each has its state to itself, and the tasks that work on it. An arrow is a
//! call; each owner also calls those further right.
//!
//! ```text
//! Manager ──► Opener ──► Fleet ──► Factory ──► Certification ──► Launcher ──► Guarded
//!                        what      what is     certificates      starts       store, audit log,
//!                        runs      made        of vRoTs          backends     deletions
//! ```

mod blocking;
mod certification;
mod counters;
mod error;
mod factory;
mod fleet;
mod folder_error;
mod folders;
mod guarded;
mod happenings;
mod launcher;
mod opening;
mod registry;
mod startup;
mod status;

use std::fs::File;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api_types::WithCauses;
use cert_chain::Digest32;
use guarded_state::ledger::RecoveryRecord;
use tenant_api::TenantApi;
use tokio::task::JoinHandle;
use vrot_events::EventLog;

use crate::audit::Event;
use crate::backend::Isolation;
use crate::background::Background;
use crate::config::Config;
use crate::evidence::HostEvidence;
use crate::fault::Fault;
use crate::host::Host;
use launch_measurement::Measuring;

pub use certification::Certification;
pub use counters::{Counter, Counters};
pub use error::ManagerError;
pub use factory::Factory;
pub use fleet::{Fleet, FolderOrder, Launch, Order, Orphans, Presented};
pub use folder_error::FolderError;
pub use guarded::{Guarded, StoreState, Vouched};
pub use registry::{Registry, Vrot};
pub use startup::Startup;
pub use status::{
    AuditStatus, EvidenceStatus, RenewalStatus, Serving, Status, StoreStatus, TpmStatus,
    WriterStatus,
};

use folders::Folders;
use launcher::Launcher;
use opening::Opener;
use startup::Opened;

/// A running manager: its owners, and what they share.
#[derive(Debug)]
pub struct Manager {
    config: Arc<Config>,
    host: Arc<Host>,
    evidence: HostEvidence,
    evidence_service: Background,
    guarded: Arc<Guarded>,
    launcher: Arc<Launcher>,
    certification: Arc<Certification>,
    factory: Arc<Factory>,
    fleet: Arc<Fleet>,
    opener: Opener,
    measuring: Measuring,
    events: Arc<EventLog>,
    /// The API for tenants, once it serves.
    tenant_api: OnceLock<TenantApi>,
    /// Orders of callers, and attempts to open the store.
    background: Background,
    /// Digest of this program.
    program: Digest32,
    /// How the last manager ended, if that was by a fault of its own.
    last_fault: Option<Fault>,
    /// The state folder, locked.
    _claim: File,
}

/// Orders that are under way when all else is done.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

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
        let (config, host) = (Arc::new(config), Arc::new(host));
        let (evidence, service) = HostEvidence::new(anchor, &config.event_log);
        let evidence_service = Background::default();
        evidence_service.until_the_end(service);
        let (policy, folders) = (config.anchor_policy, Folders::new(&config));
        let guarded = Guarded::new(journal, audit, Arc::clone(&host), policy, folders);
        let guarded = Arc::new(guarded);
        let events = Arc::new(EventLog::default());
        let launcher = Launcher::new(&config, isolation, Arc::clone(&host), Arc::clone(&guarded));
        let launcher = Arc::new(launcher);
        let certification = Arc::new(Certification::new(
            Arc::clone(&host),
            Arc::clone(&guarded),
            Arc::clone(&launcher),
            program,
            config.renewal,
        ));
        let factory = Arc::new(Factory::new(
            Arc::clone(&host),
            Arc::clone(&guarded),
            Arc::clone(&launcher),
            Arc::clone(&certification),
            program,
            config.pool.clone(),
        ));
        let fleet = Fleet::new(
            Arc::clone(&guarded),
            Arc::clone(&certification),
            Arc::clone(&factory),
            Arc::clone(&launcher),
            evidence.clone(),
            Arc::clone(&config),
            Arc::clone(&events),
        );
        let opener = Opener::new(
            Arc::clone(&guarded),
            Arc::clone(&factory),
            Arc::clone(&fleet),
        );
        Arc::new(Self {
            config,
            host,
            evidence,
            evidence_service,
            guarded,
            launcher,
            certification,
            factory,
            fleet,
            opener,
            measuring: Measuring::default(),
            events,
            tenant_api: OnceLock::new(),
            background: Background::default(),
            program,
            last_fault,
            _claim: claim,
        })
    }

    /// Opens the store and takes over what is running, and from then on does what has to be done
    /// without an order. Returns when the store was looked at: it is open, or is tried again.
    pub async fn start_serving(&self) {
        let started = Event::ManagerStarted {
            manager: self.program,
        };
        self.guarded.record_or_keep(vec![started]).await;
        if let Err(error) = self.opener.open().await {
            tracing::error!(
                error = %WithCauses(&error),
                "no vRoT can be created or started; running ones go on, degraded"
            );
        }
        let opener = self.opener.clone();
        self.background.until_the_end(opener.keep_open());
        self.factory.start_refilling();
        self.fleet.start_renewing();
    }

    /// Carries an order out to its end, even if its caller goes away meanwhile.
    pub fn carry_out<T: Send + 'static>(
        &self,
        order: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.background.spawn(order)
    }

    /// The manager is about to end: what disk and TPM do not take within this time is given up,
    /// so that the end does not wait for them.
    pub fn end_within(&self, time: Duration) {
        self.guarded.journal().end_within(time);
    }

    /// Ends the manager's work: running vRoTs go on, and what they pushed becomes durable.
    pub async fn close(&self) -> Result<(), ManagerError> {
        self.background.end();
        self.factory.end();
        self.fleet.end();
        self.certification.close().await;
        tokio::join!(self.factory.close(), self.fleet.close());
        // Guests ask for evidence until their backends are released.
        self.evidence_service.join_within(JOIN_TIMEOUT).await;
        self.launcher.close().await;
        if self.background.join_within(JOIN_TIMEOUT).await > 0 {
            tracing::warn!("an order is given up half-way");
        }
        self.guarded.record(Event::ManagerStopped).await
    }

    /// Whether vRoTs can be asked about. A store that was out of reach is tried again.
    pub async fn ready(&self) -> Result<(), ManagerError> {
        self.opener.ready().await
    }

    /// Holds the store against the anchor, and takes over what is in it if they agree. Else
    /// nothing is changed, and no vRoT can be started.
    pub async fn open_store(&self) -> Result<(), ManagerError> {
        self.opener.open().await
    }

    /// Sets the store up, where nothing is stored yet: part of `host init`. A host whose PCRs
    /// are not approved yet is left as it is; the approval does it then.
    pub async fn initialise_store(&self) -> Result<(), ManagerError> {
        self.opener.initialise().await
    }

    /// Accepts the present store, on the order of an operator who names what was found.
    pub async fn recover(&self, accepted: &str) -> Result<RecoveryRecord, ManagerError> {
        self.opener.recover(accepted).await
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
        self.launcher.program_digest().await
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        self.launcher.isolation()
    }

    /// How the last manager ended, if that was by a fault of its own.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.last_fault.as_ref()
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The evidence service.
    pub fn evidence(&self) -> &HostEvidence {
        &self.evidence
    }

    /// What must be durable.
    pub fn guarded(&self) -> &Guarded {
        &self.guarded
    }

    /// Certificates of vRoTs.
    pub fn certification(&self) -> &Certification {
        &self.certification
    }

    /// vRoTs that belong to no VM yet.
    pub fn factory(&self) -> &Factory {
        &self.factory
    }

    /// What measures launches.
    pub fn measuring(&self) -> &Measuring {
        &self.measuring
    }

    /// What happens to vRoTs, for those who follow it.
    pub fn events(&self) -> &Arc<EventLog> {
        &self.events
    }

    /// The API for tenants serves from now on.
    pub fn tell_of_tenant_api(&self, api: TenantApi) {
        // There is one.
        let _ = self.tenant_api.set(api);
    }

    /// vRoTs of VMs.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }
}
