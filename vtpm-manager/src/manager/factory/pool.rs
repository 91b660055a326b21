//! vRoTs made ahead, so that the launch of a VM waits for no key and no signature.
//!
//! A member has everything: keys, certificates, a record in the store, and a backend that
//! listens. It was made for a VM number of the manager's own choice and for one of the
//! configured tenants. A VM that takes that number gets it as it is. For a VM that comes with a
//! number of its own, or of another tenant, the identity key's certificate is withdrawn, and another
//! one is issued beside the launch.
//!
//! Members survive the manager in the store, but not their backends: a successor opens them anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api_types::{Timestamp, WithCauses};
use cert_chain::{Tenant, VmId, VrotId};
use guarded_state::disk::Part;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::manufacturing::{FIRST_GENERATION, ManufacturedVrot};
use crate::audit::Event;
use crate::backend::Role;
use crate::config::PoolConfig;
use crate::manager::certification::renewal::is_fresh;
use crate::manager::{Manager, ManagerError};
use crate::vrot::VrotRecord;

/// The vRoTs that wait for a VM.
#[derive(Debug, Default)]
pub struct Pool {
    members: Mutex<Members>,
    /// A member was taken, or the manager can make some again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Members {
    /// Their backends run, their state is in the store.
    ready: Vec<ManufacturedVrot>,
    /// Found in the store; their backends do not run yet.
    cold: Vec<VrotRecord>,
}

/// After a failure, e.g. of the physical TPM. Launches work without a pool.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Pause so that refilling does not compete with the VM that is starting.
const REFILL_DELAY: Duration = Duration::from_millis(250);
/// Between members that are opened anew, which takes milliseconds each.
const INHERITED_PAUSE: Duration = Duration::from_millis(10);
/// A member that does not end is killed: it has no guest, and its state is in the store.
const CLOSING: Duration = Duration::from_secs(2);
/// Members whose certificates are old, or whose backends have ended, are looked for this often.
const INSPECTION: Duration = Duration::from_secs(5);

impl Pool {
    /// How many vRoTs can be given away at once.
    pub fn ready(&self) -> usize {
        self.members().ready.len()
    }

    /// How many of those are made out to a tenant.
    pub fn ready_for(&self, tenant: &Tenant) -> usize {
        let made_out = |member: &&ManufacturedVrot| member.record.tenant == *tenant;
        self.members().ready.iter().filter(made_out).count()
    }

    /// A member, of this tenant if there is one. None, if the pool is empty.
    pub(in crate::manager) fn take(&self, tenant: &Tenant) -> Option<ManufacturedVrot> {
        let mut members = self.members();
        let ready = &members.ready;
        let fitting = |one: &ManufacturedVrot| one.record.tenant == *tenant && is_usable(one);
        let position =
            (ready.iter().position(fitting)).or_else(|| ready.iter().position(is_usable))?;
        self.changed.notify_one();
        Some(members.ready.swap_remove(position))
    }

    /// Whether this vRoT is a member.
    pub(in crate::manager) fn has(&self, vrot: VrotId) -> bool {
        let members = self.members();
        let ready = members.ready.iter().map(|member| &member.record);
        ready.chain(&members.cold).any(|record| record.vrot == vrot)
    }

    /// Keeps a member that was found in the store.
    pub(in crate::manager) fn found(&self, record: VrotRecord) {
        self.members().cold.push(record);
        self.changed.notify_one();
    }

    /// Has the pool filled as soon as possible.
    pub(in crate::manager) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Ends the backends of all members, which only this manager knows.
    pub(in crate::manager) async fn close(&self) {
        let members = std::mem::take(&mut self.members().ready);
        let mut endings = JoinSet::new();
        for member in members {
            endings.spawn(async move {
                if let Err(error) = member.backend.stop_within(CLOSING).await {
                    tracing::debug!(vrot = %member.record.vrot, %error, "was gone already");
                }
            });
        }
        endings.join_all().await;
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_usable(member: &ManufacturedVrot) -> bool {
    is_fresh(&member.record.identity, Timestamp::now()) && !member.backend.has_ended()
}

/// Keeps the pool full, at the configured rate.
pub(in crate::manager) async fn keep_full(manager: Arc<Manager>) {
    let step = move || {
        let manager = Arc::clone(&manager);
        async move {
            Some(match manager.tend_pool().await {
                Ok(Tended::Added) => Pause::Rate(manager.config.pool.pause()),
                Ok(Tended::Inherited) => Pause::Inherited,
                Ok(Tended::Full) => Pause::Full(Arc::clone(&manager.pool)),
                Err(error) => {
                    tracing::warn!(error = %WithCauses(&error), "the pool of vRoTs is not filled");
                    Pause::Failed
                }
            })
        }
    };
    in_steps(step, sleep).await;
}

/// Takes one step after the other, with a pause after each, until there is none.
async fn in_steps<S, P>(mut step: impl FnMut() -> S, sleep: impl Fn(Duration) -> P)
where
    S: Future<Output = Option<Pause>>,
    P: Future<Output = ()>,
{
    while let Some(pause) = step().await {
        sleep(pause.length().await).await;
    }
}

/// What lies between two steps.
#[derive(Debug)]
enum Pause {
    /// One was made, and the next has its time.
    Rate(Duration),
    /// Next to nothing was done.
    Inherited,
    /// Nothing is to be done until a member is missing.
    Full(Arc<Pool>),
    /// Something is wrong.
    Failed,
}

impl Pause {
    /// How long it is, once its event is there.
    async fn length(self) -> Duration {
        match self {
            Self::Rate(pause) => pause,
            Self::Inherited => INHERITED_PAUSE,
            Self::Full(pool) => {
                // Either way it is time to look again.
                let _ = timeout(INSPECTION, pool.changed.notified()).await;
                REFILL_DELAY
            }
            Self::Failed => RETRY_PAUSE,
        }
    }
}

/// What one step brought.
enum Tended {
    /// One more member, or one less that had become too old.
    Added,
    /// One more of an earlier manager's is ready, or gone. No key was made.
    Inherited,
    /// There is nothing to do, or nothing can be done yet.
    Full,
}

impl Manager {
    /// One step towards a full pool.
    async fn tend_pool(&self) -> Result<Tended, ManagerError> {
        if !self.store.is_open() || self.host.enrolment().is_none() {
            return Ok(Tended::Full);
        }
        let stale = {
            let mut members = self.pool.members();
            let position = members.ready.iter().position(|one| !is_usable(one));
            position.map(|position| members.ready.swap_remove(position))
        };
        if let Some(member) = stale {
            // It may have ended by itself: that is one reason to be here.
            let _ = member.backend.stop().await;
            self.discard(member.record.vrot, None).await?;
            return Ok(Tended::Added);
        }
        let cold = self.pool.members().cold.pop();
        if let Some(record) = cold {
            return self.warm(record).await;
        }
        let PoolConfig { size, tenants, .. } = &self.config.pool;
        let lacking = |tenant: &&Tenant| self.pool.ready_for(tenant) < *size;
        let Some(tenant) = tenants.iter().find(lacking).cloned() else {
            return Ok(Tended::Full);
        };
        let mut made = self.manufacture(VmId::random(), tenant).await?;
        if let Err(error) = self.complete(&mut made).await {
            // The pool alone knows that it runs.
            let _ = made.backend.stop().await;
            return Err(error);
        }
        self.add(made);
        Ok(Tended::Added)
    }

    /// Certifies a new member and puts it into the store.
    async fn complete(&self, made: &mut ManufacturedVrot) -> Result<(), ManagerError> {
        let keyring = self.host.keyring().await?;
        self.issue_at_once(&mut made.record, &keyring, &made.backend)
            .await?;
        if let Some(state) = made.backend.take_state().await? {
            made.unsaved = Some(state);
        }
        let record = &made.record;
        self.record(Event::VrotManufactured {
            vrot: record.vrot,
            vik: record.identity.vik(record.vrot)?.name(),
            certificate: record.identity.vik_certificate_digest(),
        })
        .await?;
        let mut commit = record.to_batch();
        if let Some(state) = made.unsaved.take() {
            commit = commit.put(record.vrot, Part::Permanent, state.to_bytes());
        }
        Ok(self.journal.commit(commit).await?)
    }

    /// Opens a member that an earlier manager made, if it is still what this one would make.
    async fn warm(&self, record: VrotRecord) -> Result<Tended, ManagerError> {
        let identity = &record.identity;
        let host_certificate = self
            .host
            .enrolment()
            .map(|enrolment| enrolment.certificate.der().to_vec());
        let fits = record.generation == FIRST_GENERATION
            && is_fresh(identity, Timestamp::now())
            && self.config.pool.tenants.contains(&record.tenant)
            && self.pool.ready_for(&record.tenant) < self.config.pool.size
            && identity.manager == self.program
            && identity.backend == self.backend_digest().await?
            && host_certificate.as_deref() == Some(&identity.host_certificate);
        if !fits {
            self.discard(record.vrot, None).await?;
            return Ok(Tended::Inherited);
        }
        let backend = self.open_backend(&record, Role::Manufacture).await?;
        self.add(ManufacturedVrot {
            record,
            backend,
            unsaved: None,
        });
        Ok(Tended::Inherited)
    }

    fn add(&self, made: ManufacturedVrot) {
        let record = &made.record;
        tracing::debug!(vrot = %record.vrot, tenant = %record.tenant, "ready for a VM");
        self.pool.members().ready.push(made);
    }

    /// The vRoTs that wait for a VM.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::num::NonZeroU32;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Steps that make a vRoT each, unless the pool is found full, in one hour of a clock on which
    /// only pauses take time.
    async fn made_in_an_hour(rate: NonZeroU32, is_full: impl Fn(u32) -> bool) -> u32 {
        let config = PoolConfig {
            refill_per_minute: rate,
            ..PoolConfig::default()
        };
        let pool = Arc::new(Pool::default());
        let clock = Cell::new(Duration::ZERO);
        let (mut steps, mut made) = (0, 0);
        let step = || {
            steps += 1;
            // Members are taken all the time.
            pool.wake();
            let pause = if clock.get() >= HOUR {
                None
            } else if is_full(steps) {
                Some(Pause::Full(Arc::clone(&pool)))
            } else {
                made += 1;
                Some(Pause::Rate(config.pause()))
            };
            async { pause }
        };
        in_steps(step, async |pause| clock.set(clock.get() + pause)).await;
        made
    }

    #[tokio::test]
    async fn the_pool_is_filled_no_faster_than_configured_however_fast_it_is_emptied() {
        for rate in [1, 60, 6000].into_iter().filter_map(NonZeroU32::new) {
            let made = made_in_an_hour(rate, |_| false).await;
            let in_turns = made_in_an_hour(rate, |step| step % 2 == 0).await;
            let rate = rate.get();
            // The first one needs no pause before it.
            assert!(made <= rate * 60 + 1, "{made} at {rate} a minute");
            assert!(made >= rate * 30, "{made} at {rate} a minute");
            assert!(
                (1..=made).contains(&in_turns),
                "{in_turns} at {rate} a minute"
            );
        }
    }
}
