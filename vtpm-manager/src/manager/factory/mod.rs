//! vRoTs in the making, and those that were made ahead.

mod manufacturing;
mod pool;
mod refill;

use std::sync::Arc;

use cert_chain::{Digest32, Tenant, VrotId};
use tokio::sync::Semaphore;

use super::certification::Certification;
use super::guarded::Guarded;
use super::launcher::Launcher;
use crate::background::Background;
use crate::config::PoolConfig;
use crate::host::Host;
use crate::vrot::VrotRecord;

use pool::Pool;

pub(super) use manufacturing::ManufacturedVrot;

/// Owns the vRoTs that belong to no VM yet.
#[derive(Debug)]
pub struct Factory {
    host: Arc<Host>,
    guarded: Arc<Guarded>,
    launcher: Arc<Launcher>,
    certification: Arc<Certification>,
    background: Background,
    /// Digest of this program.
    program: Digest32,
    pool: Arc<Pool>,
    pool_config: PoolConfig,
    /// One permit for each vRoT that may be in manufacture at the same time.
    manufacturing: Arc<Semaphore>,
}

impl Factory {
    pub(super) fn new(
        host: Arc<Host>,
        guarded: Arc<Guarded>,
        launcher: Arc<Launcher>,
        certification: Arc<Certification>,
        program: Digest32,
        pool_config: PoolConfig,
    ) -> Self {
        Self {
            host,
            guarded,
            launcher,
            certification,
            background: Background::default(),
            program,
            pool: Arc::new(Pool::default()),
            pool_config,
            manufacturing: Arc::new(Semaphore::new(manufacturing::AT_A_TIME)),
        }
    }

    /// How many vRoTs that were made ahead can be given away at once.
    pub fn ready(&self) -> usize {
        self.pool.ready()
    }

    /// A vRoT that was made ahead, for this tenant if there is one. None, if there is none at all.
    pub(super) fn take(&self, tenant: &Tenant) -> Option<ManufacturedVrot> {
        self.pool.take(tenant)
    }

    /// Whether this vRoT was made ahead and not given away.
    pub(super) fn has(&self, vrot: VrotId) -> bool {
        self.pool.has(vrot)
    }

    /// Keeps a vRoT that an earlier manager made ahead.
    pub(super) fn found(&self, record: VrotRecord) {
        self.pool.found(record);
    }

    /// Has the pool filled as soon as possible.
    pub(super) fn wake(&self) {
        self.pool.wake();
    }

    /// Begins nothing any more.
    pub(super) fn end(&self) {
        self.background.end();
    }

    /// Ends the backends of vRoTs that were made ahead, which only this manager knows.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}
