//! The vRoTs of this host's VMs: what runs, and what becomes of it.
//!
//! Each transition of a vRoT holds its gate, does what takes time, commits the new record, and only
//! then lets others see it.
//!
//! | file | what |
//! |---|---|
//! | `creation.rs` | a vRoT for a VM |
//! | `announced.rs` | launches that hooks announced, for launchers that know swtpm |
//! | `banks.rs` | PCR banks of a folder's vRoT |
//! | `bound.rs` | a vRoT for a folder |
//! | `start.rs` | start and resume |
//! | `stop.rs` | stop and suspend |
//! | `deletion.rs` | finding a vRoT, and deleting it |
//! | `launches.rs` | what VMs are launched with |
//! | `renewals.rs` | renewal of certificates, on order and by itself |
//! | `quoting_places.rs` | how many vRoTs quote for tenants at a time |
//! | `tenant_evidence.rs` | quotes for tenants and of PCRs, without the guests |
//! | `takeover.rs` | what is found when the store is opened |
//! | `endings.rs` | backends that end by themselves |
//! | `losses.rs` | state that may have been lost with a backend |
//! | `observations.rs` | what followers are told of backends and of the host |
//! | `orphans.rs` | backends that go on without a manager |

mod announced;
mod banks;
mod bound;
mod creation;
mod deletion;
mod endings;
mod launches;
mod losses;
mod observations;
mod orphans;
mod quoting_places;
mod renewals;
mod start;
mod stop;
mod takeover;
mod tenant_evidence;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use attestation::{Anchoring, CutOff, TpmTransport};
use backend_link::transport::Transport;
use cert_chain::VrotId;
use guarded_state::ledger::AnchorPolicy;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vrot_events::EventLog;

use self::quoting_places::QuotingPlaces;
use super::certification::Certification;
use super::counters::Counters;
use super::factory::Factory;
use super::folders::Folders;
use super::guarded::Guarded;
use super::launcher::Launcher;
use super::registry::Registry;
use crate::backend::{Ended, GuestRole, RuntimeFolder, Share};
use crate::background::Background;
use crate::config::Config;
use crate::evidence::{HostEvidence, Subject};
use crate::rate_limit::Quota;
use crate::vrot::{RecordError, VrotRecord};

pub use bound::{FolderOrder, Presented};
pub use creation::{Launch, Order};
pub use orphans::Orphans;

/// Owns the vRoTs of VMs, and their backends.
#[derive(Debug)]
pub struct Fleet {
    registry: Registry,
    events: Arc<EventLog>,
    guarded: Arc<Guarded>,
    certification: Arc<Certification>,
    factory: Arc<Factory>,
    launcher: Arc<Launcher>,
    evidence: HostEvidence,
    quoting: QuotingPlaces,
    config: Arc<Config>,
    folders: Folders,
    background: Background,
    ended: mpsc::UnboundedSender<(VrotId, Ended)>,
    /// Cancelled once the audit log was held against the store: lines about ends come after that.
    compared: CancellationToken,
    counters: Counters,
    orphans: Mutex<orphans::Seen>,
    announced: announced::Announced,
}

/// What releasing the backends takes, all at once: longer than the store takes to give up what
/// does not become durable.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(12);
/// What is still under way after that: the end of a backend that is being recorded, or a backend of
/// an earlier manager that does not answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Fleet {
    /// Of a host on which nothing was looked at yet.
    pub(super) fn new(
        guarded: Arc<Guarded>,
        certification: Arc<Certification>,
        factory: Arc<Factory>,
        launcher: Arc<Launcher>,
        evidence: HostEvidence,
        config: Arc<Config>,
        events: Arc<EventLog>,
    ) -> Arc<Self> {
        let (ended, endings) = mpsc::unbounded_channel();
        let fleet = Arc::new(Self {
            registry: Registry::new(Arc::clone(&events)),
            events,
            guarded,
            certification,
            factory,
            launcher,
            evidence,
            quoting: QuotingPlaces::of_this_host(),
            folders: Folders::new(&config),
            config,
            background: Background::default(),
            ended,
            compared: CancellationToken::new(),
            counters: Counters::default(),
            orphans: Mutex::default(),
            announced: announced::Announced::default(),
        });
        let noting = endings::note_endings(Arc::clone(&fleet), endings);
        fleet.background.until_the_end(noting);
        fleet
    }

    /// All vRoTs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where the backend of a vRoT listens.
    pub fn folder(&self, vrot: VrotId) -> RuntimeFolder {
        self.folders.of(vrot)
    }

    /// Begins nothing any more by itself.
    pub(super) fn end(&self) {
        self.background.end();
    }

    /// Leaves the backends running. Returns when what they pushed is durable.
    pub(super) async fn close(&self) {
        let mut releases = JoinSet::new();
        for vrot in self.registry.all() {
            if let Some(backend) = vrot.backend() {
                releases.spawn(async move { backend.release().await });
            }
        }
        if timeout(RELEASE_TIMEOUT, releases.join_all()).await.is_err() {
            tracing::warn!("a backend is left as it is: it keeps what was not made durable");
        }
        let tasks = self.background.join_within(JOIN_TIMEOUT).await;
        if tasks > 0 {
            tracing::warn!(tasks, "what is under way is left to the next manager");
        }
    }

    /// No guest is served before the store is open, and while it is, nothing changes here.
    fn cut_off(&self) -> CutOff {
        let power_loss = self
            .guarded
            .vouched()
            .and_then(|vouched| vouched.power_loss);
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
            journal: self.guarded.journal().clone(),
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
                launch: launches::stated(record),
                transport: match record.transport {
                    Transport::Emulator => TpmTransport::Emulator,
                    Transport::VirtioTpm => TpmTransport::VirtioTpm,
                    Transport::VirtioI2c => TpmTransport::VirtioI2c,
                },
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
