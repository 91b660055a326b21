//! Fills the pool: one step after the other, with a pause after each.

use std::sync::Arc;
use std::time::Duration;

use api_types::{Timestamp, WithCauses};
use cert_chain::{Tenant, VmId};
use guarded_state::disk::Part;
use tokio::time::{sleep, timeout};

use super::Factory;
use super::manufacturing::{FIRST_GENERATION, ManufacturedVrot};
use super::pool::Pool;
use crate::audit::Event;
use crate::backend::Role;
use crate::config::PoolConfig;
use crate::manager::certification::is_fresh;
use crate::manager::error::ManagerError;
use crate::vrot::VrotRecord;

/// After a failure, e.g. of the physical TPM. Launches work without a pool.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Pause so that refilling does not compete with the VM that is starting.
const REFILL_DELAY: Duration = Duration::from_millis(250);
/// Between members that are opened anew, which takes milliseconds each.
const INHERITED_PAUSE: Duration = Duration::from_millis(10);
/// Members whose certificates are old, or whose backends have ended, are looked for this often.
const INSPECTION: Duration = Duration::from_secs(5);

/// Keeps the pool full, at the configured rate.
async fn keep_full(factory: Arc<Factory>) {
    let step = move || {
        let factory = Arc::clone(&factory);
        async move {
            Some(match factory.refill().await {
                Ok(Refilled::Added) => Pause::Rate(factory.pool_config.pause()),
                Ok(Refilled::Inherited) => Pause::Inherited,
                Ok(Refilled::Full) => Pause::Full(Arc::clone(&factory.pool)),
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
                let _ = timeout(INSPECTION, pool.changed()).await;
                REFILL_DELAY
            }
            Self::Failed => RETRY_PAUSE,
        }
    }
}

/// What one step brought.
enum Refilled {
    /// One more member, or one less that had become too old.
    Added,
    /// One more of an earlier manager's is ready, or gone. No key was made.
    Inherited,
    /// There is nothing to do, or nothing can be done yet.
    Full,
}

impl Factory {
    /// Keeps the pool full until the manager ends.
    pub(in crate::manager) fn start_refilling(self: &Arc<Self>) {
        self.background.until_the_end(keep_full(Arc::clone(self)));
    }

    /// One step towards a full pool.
    async fn refill(&self) -> Result<Refilled, ManagerError> {
        if !self.guarded.is_open() || self.host.enrolment().is_none() {
            return Ok(Refilled::Full);
        }
        if let Some(member) = self.pool.take_unusable() {
            // It may have ended by itself: that is one reason to be here.
            let _ = member.backend.stop().await;
            self.guarded.discard(member.record.vrot, None).await?;
            return Ok(Refilled::Added);
        }
        if let Some(record) = self.pool.take_inherited() {
            return self.open_inherited(record).await;
        }
        let PoolConfig { size, tenants, .. } = &self.pool_config;
        let lacking = |tenant: &&Tenant| self.pool.ready_for(tenant) < *size;
        let Some(tenant) = tenants.iter().find(lacking).cloned() else {
            return Ok(Refilled::Full);
        };
        let mut made = self.manufacture(VmId::random(), tenant).await?;
        if let Err(error) = self.complete(&mut made).await {
            // The pool alone knows that it runs.
            let _ = made.backend.stop().await;
            return Err(error);
        }
        self.pool.add(made);
        Ok(Refilled::Added)
    }

    /// Certifies a new member and puts it into the store.
    async fn complete(&self, made: &mut ManufacturedVrot) -> Result<(), ManagerError> {
        self.certification
            .issue_at_once(&mut made.record, &made.backend)
            .await?;
        if let Some(state) = made.backend.take_state().await? {
            made.unsaved = Some(state);
        }
        let record = &made.record;
        self.guarded
            .record(Event::VrotManufactured {
                vrot: record.vrot,
                vik: record.identity.vik(record.vrot)?.name(),
                certificate: record.identity.vik_certificate_digest(),
            })
            .await?;
        let mut commit = record.to_batch();
        if let Some(state) = made.unsaved.take() {
            commit = commit.put(record.vrot, Part::Permanent, state.to_bytes());
        }
        self.guarded.commit(commit).await
    }

    /// Opens a member that an earlier manager made, if it is still what this one would make.
    async fn open_inherited(&self, record: VrotRecord) -> Result<Refilled, ManagerError> {
        let identity = &record.identity;
        let host_certificate = self
            .host
            .enrolment()
            .map(|enrolment| enrolment.certificate.der().to_vec());
        let fits = record.generation == FIRST_GENERATION
            && is_fresh(identity, Timestamp::now())
            && self.pool_config.tenants.contains(&record.tenant)
            && self.pool.ready_for(&record.tenant) < self.pool_config.size
            && identity.manager == self.program
            && identity.backend == self.launcher.program_digest().await?
            && host_certificate.as_deref() == Some(&identity.host_certificate);
        if !fits {
            self.guarded.discard(record.vrot, None).await?;
            return Ok(Refilled::Inherited);
        }
        let backend = self.launcher.open(&record, Role::Manufacture).await?;
        self.pool.add(ManufacturedVrot {
            record,
            backend,
            unsaved: None,
        });
        Ok(Refilled::Inherited)
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
