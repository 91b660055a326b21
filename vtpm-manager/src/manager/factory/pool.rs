//! vRoTs made ahead, so that the launch of a VM waits for no key and no signature.
//!
//! A member has everything: keys, certificates, a record in the store, and a backend that
//! listens. It was made for a VM number of the manager's own choice and for one of the
//! configured tenants. A VM that takes that number gets it as it is. For a VM that comes with a
//! number of its own, or of another tenant, the identity key's certificate is withdrawn, and another
//! one is issued beside the launch.
//!
//! Members survive the manager in the store, but not their backends: a successor opens them anew.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::{Tenant, VrotId};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::manufacturing::ManufacturedVrot;
use crate::manager::certification::is_fresh;
use crate::vrot::VrotRecord;

/// The vRoTs that wait for a VM.
#[derive(Debug, Default)]
pub(super) struct Pool {
    members: Mutex<Members>,
    /// A member was taken, or the manager can make some again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Members {
    /// Their backends run, their state is in the store.
    ready: Vec<ManufacturedVrot>,
    /// Found in the store; their backends do not run yet.
    inherited: Vec<VrotRecord>,
}

/// A member that does not end is killed: it has no guest, and its state is in the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Pool {
    /// How many vRoTs can be given away at once.
    pub(super) fn ready(&self) -> usize {
        self.members().ready.len()
    }

    /// How many of those are made out to a tenant.
    pub(super) fn ready_for(&self, tenant: &Tenant) -> usize {
        let made_out = |member: &&ManufacturedVrot| member.record.tenant == *tenant;
        self.members().ready.iter().filter(made_out).count()
    }

    /// A member, of this tenant if there is one. None, if the pool is empty.
    pub(super) fn take(&self, tenant: &Tenant) -> Option<ManufacturedVrot> {
        let mut members = self.members();
        let ready = &members.ready;
        let fitting = |one: &ManufacturedVrot| one.record.tenant == *tenant && is_usable(one);
        let position =
            (ready.iter().position(fitting)).or_else(|| ready.iter().position(is_usable))?;
        self.changed.notify_one();
        Some(members.ready.swap_remove(position))
    }

    /// Whether this vRoT is a member.
    pub(super) fn has(&self, vrot: VrotId) -> bool {
        let members = self.members();
        let ready = members.ready.iter().map(|member| &member.record);
        ready
            .chain(&members.inherited)
            .any(|record| record.vrot == vrot)
    }

    /// Keeps a member that was found in the store.
    pub(super) fn found(&self, record: VrotRecord) {
        self.members().inherited.push(record);
        self.changed.notify_one();
    }

    /// Takes in a member that is ready.
    pub(super) fn add(&self, made: ManufacturedVrot) {
        let record = &made.record;
        tracing::debug!(vrot = %record.vrot, tenant = %record.tenant, "ready for a VM");
        self.members().ready.push(made);
    }

    /// A member that cannot be given away any more: its certificates are old, or its backend has
    /// ended.
    pub(super) fn take_unusable(&self) -> Option<ManufacturedVrot> {
        let mut members = self.members();
        let position = members.ready.iter().position(|one| !is_usable(one))?;
        Some(members.ready.swap_remove(position))
    }

    /// A member whose backend does not run yet.
    pub(super) fn take_inherited(&self) -> Option<VrotRecord> {
        self.members().inherited.pop()
    }

    /// Waits until a member was taken, or the pool is to be looked after.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has the pool filled as soon as possible.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Ends the backends of all members, which only this manager knows.
    pub(super) async fn close(&self) {
        let members = std::mem::take(&mut self.members().ready);
        let mut endings = JoinSet::new();
        for member in members {
            endings.spawn(async move {
                if let Err(error) = member.backend.stop_within(CLOSE_TIMEOUT).await {
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
