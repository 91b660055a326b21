//! Create, start, suspend, resume, stop, delete.
//!
//! Each transition holds the vRoT's gate, does what takes time, commits the new record, and only
//! then lets others see it. What happened is a line in the audit log before the caller is told.

use std::sync::Arc;

use cert_chain::{Digest32, Tenant, VmId};

use super::manufacturing::Product;
use super::registry::{Vrot, VrotKey};
use super::renewal::Occasion;
use super::{Counter, Manager, ManagerError};
use crate::audit::Event;
use crate::backend::{Backend, Duty};
use crate::keys::Keyring;
use crate::store::{Batch, Part};
use crate::timestamp::Timestamp;
use crate::vrot::{LifecycleError, StopCause, StoredVrot, Tombstone, VrotName, VrotRecord};

/// What is to be created.
#[derive(Clone, Debug)]
pub struct Order {
    /// The VM; without one, the manager chooses its number.
    pub vm: Option<VmId>,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// What people call it.
    pub name: Option<VrotName>,
    /// When it is to be started.
    pub launch: Launch,
}

/// When a new vRoT is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// With its creation.
    Now,
    /// On demand.
    Later,
}

/// How a vRoT comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// As after a loss of power.
    Start,
    /// As it was.
    Resume,
}

impl Manager {
    /// Gives a VM a vRoT: one of the pool, or a new one.
    pub async fn create(&self, order: Order) -> Result<Arc<Vrot>, ManagerError> {
        let claimed = order.vm.map(|vm| self.registry.reserve(vm)).transpose()?;
        let mut product = match self.pool.take(&order.tenant) {
            Some(member) => member,
            None => {
                let vm = order.vm.unwrap_or_else(VmId::random);
                self.manufacture(vm, order.tenant.clone()).await?
            }
        };
        if let Err(error) = self.hand_over(&order, &mut product).await {
            // It must not run while the store says that it does not; and nobody else gets it.
            let _ = product.backend.stop().await;
            if product.unsaved.is_none()
                && let Err(error) = self.discard(&product.record).await
            {
                let vrot = product.record.vrot;
                tracing::warn!(%vrot, %error, "a vRoT is left in the store that belongs to no VM");
            }
            return Err(error);
        }
        let Product {
            record, backend, ..
        } = product;
        tracing::info!(vrot = %record.vrot, vm = %record.vm, "created");
        let created = self.registry.insert(record);
        drop(claimed);
        self.counters.increment(Counter::Created);
        match order.launch {
            Launch::Now => {
                created.set_backend(Some(backend));
                self.counters.increment(Counter::Started);
            }
            Launch::Later => drop(backend.stop().await?),
        }
        Ok(created)
    }

    /// Makes a manufactured vRoT that of a VM, in the store as well.
    async fn hand_over(&self, order: &Order, product: &mut Product) -> Result<(), ManagerError> {
        let now = Timestamp::now();
        let Product {
            record,
            backend,
            unsaved,
        } = product;
        let vm = order.vm.unwrap_or(record.vm);
        if (vm, &order.tenant) != (record.vm, &record.tenant) {
            record.vm = vm;
            record.tenant = order.tenant.clone();
            let keyring = self.host.keyring().await?;
            self.renew(record, &keyring, backend, now, Occasion::First)
                .await?;
        }
        record.name = order.name.clone();
        record.lifecycle = record.lifecycle.assign(now)?;
        let mut events = vec![Event::VrotCreated {
            vrot: record.vrot,
            vm: record.vm,
            tenant: record.tenant.clone(),
            generation: record.generation,
            vik: record.identity.vik(record.vrot)?.name(),
            certificate: Digest32::of(&record.identity.vik_certificate),
        }];
        let changed = match order.launch {
            Launch::Now => {
                record.lifecycle = record.lifecycle.start(backend.observed().process, now)?;
                events.push(Event::VrotStarted { vrot: record.vrot });
                let duty = self.guest_duty(record)?;
                backend.serve(&self.nursery, duty).await?
            }
            Launch::Later => backend.take_state().await?,
        };
        self.record_all(events).await?;
        let mut commit = Batch::default().put(record.vrot, Part::Record, record.to_bytes());
        if let Some(state) = changed.as_ref().or(unsaved.as_ref()) {
            commit = commit.put(record.vrot, Part::Permanent, state.to_bytes());
        }
        Ok(self.journal.commit(commit).await?)
    }

    /// Starts a vRoT. Returns when a VMM can attach.
    pub async fn start(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, Beginning::Start).await
    }

    /// Starts a suspended vRoT with the volatile state that it had. Returns when a VMM can
    /// attach. The volatile state is used up: it never comes back.
    pub async fn resume(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, Beginning::Resume).await
    }

    async fn bring_up(
        &self,
        key: VrotKey,
        beginning: Beginning,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.registry.find(key)?;
        let gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        match beginning {
            Beginning::Start => record.lifecycle.check_start()?,
            Beginning::Resume => record.lifecycle.check_resume()?,
        }
        let keyring = self.host.keyring().await?;
        let duty = Duty::Guest(self.guest_duty(&record)?);
        let backend = self.open_backend(&record, duty).await?;
        let begun = self
            .begin(&vrot, &mut record, &keyring, &backend, beginning)
            .await;
        if let Err(error) = begun {
            // It must not run while the store says that it does not.
            backend.stop().await?;
            return Err(error);
        }
        tracing::info!(vrot = %record.vrot, ?beginning, "started");
        vrot.set_record(record);
        vrot.set_backend(Some(backend));
        self.counters.increment(Counter::Started);
        drop(gate);
        Ok(vrot)
    }

    /// What follows once the backend is up: a certificate that lasts, and the record.
    async fn begin(
        &self,
        vrot: &Vrot,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        beginning: Beginning,
    ) -> Result<(), ManagerError> {
        let now = Timestamp::now();
        let process = backend.observed().process;
        let id = record.vrot;
        match beginning {
            Beginning::Start => {
                if self.is_renewal_due(record, now) {
                    self.renew(record, keyring, backend, now, Occasion::Start)
                        .await?;
                }
                record.lifecycle = record.lifecycle.start(process, now)?;
                self.record(Event::VrotStarted { vrot: id }).await?;
            }
            // A command now would switch the TPM on, and the volatile state would be gone.
            Beginning::Resume => {
                record.lifecycle = record.lifecycle.resume(process, now)?;
                self.record(Event::VrotResumed { vrot: id }).await?;
            }
        }
        let change = Batch::default()
            .put(id, Part::Record, record.to_bytes())
            .remove(id, Part::Volatile);
        self.journal.commit(change).await.inspect_err(|_| {
            tracing::error!(vrot = %vrot.record().vrot, "not started: the store did not take it");
        })?;
        Ok(())
    }

    /// Stops a vRoT and keeps its volatile state. Returns when all of it is durable. The VM must
    /// be paused: what it does to its TPM meanwhile is lost.
    pub async fn suspend(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.registry.find(key)?;
        let gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        record.lifecycle = record.lifecycle.suspend(Timestamp::now())?;
        let backend = vrot.backend().ok_or(LifecycleError::NotRunning {
            state: "without a backend",
        })?;
        // It ends only once its state is in the store: it has the only copy until then.
        if let Err(error) = self.put_aside(&record, &backend).await {
            backend.go_on().await;
            return Err(error);
        }
        backend.stop().await?;
        vrot.set_backend(None);
        tracing::info!(vrot = %record.vrot, "suspended");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    async fn put_aside(&self, record: &VrotRecord, backend: &Backend) -> Result<(), ManagerError> {
        let id = record.vrot;
        let volatile = backend.suspend().await?;
        let volatile = volatile.ok_or(ManagerError::NothingToSuspend { vrot: id })?;
        self.record(Event::VrotSuspended { vrot: id }).await?;
        let change = Batch::default()
            .put(id, Part::Record, record.to_bytes())
            .put(id, Part::Volatile, volatile);
        Ok(self.journal.commit(change).await?)
    }

    /// Stops a vRoT. Returns when its state is durable.
    pub async fn stop(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.registry.find(key)?;
        let gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::Ordered, Timestamp::now())?;
        if let Some(backend) = vrot.backend() {
            backend.stop().await?;
        }
        vrot.set_backend(None);
        self.record(Event::VrotStopped { vrot: record.vrot })
            .await?;
        let change = Batch::default()
            .put(record.vrot, Part::Record, record.to_bytes())
            .remove(record.vrot, Part::Volatile);
        self.journal.commit(change).await?;
        self.counters.increment(Counter::Stopped);
        tracing::info!(vrot = %record.vrot, "stopped");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    /// Deletes a vRoT: its key first, so that a crash on the way leaves nothing that opens.
    pub async fn delete(&self, key: VrotKey) -> Result<(), ManagerError> {
        let vrot = self.registry.find(key)?;
        let _gate = vrot.gate.lock().await;
        let record = vrot.record();
        let now = Timestamp::now();
        let deleted = record.lifecycle.delete(now)?;
        self.record(Event::VrotDeleted {
            vrot: record.vrot,
            vm: record.vm,
        })
        .await?;
        let tombstone = StoredVrot::Deleted(Tombstone {
            vrot: record.vrot,
            at: now,
        });
        let bury = Batch::default().put(record.vrot, Part::Record, tombstone.to_bytes());
        self.journal.commit(bury).await?;
        // Whoever waits at the gate must not put the record, with its keys, back.
        vrot.set_record(VrotRecord {
            lifecycle: deleted,
            ..record.clone()
        });
        self.registry.remove(&vrot);
        self.journal
            .commit(Batch::default().delete(record.vrot))
            .await?;
        self.counters.increment(Counter::Deleted);
        tracing::info!(vrot = %record.vrot, "deleted");
        Ok(())
    }

    pub(super) async fn commit_record(&self, record: &VrotRecord) -> Result<(), ManagerError> {
        let change = Batch::default().put(record.vrot, Part::Record, record.to_bytes());
        Ok(self.journal.commit(change).await?)
    }
}
