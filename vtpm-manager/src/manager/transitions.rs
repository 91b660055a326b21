//! Create, start, suspend, resume, stop, delete.
//!
//! Each transition holds the vRoT's gate, does what takes time, commits the new record, and only
//! then lets others see it. What happened is a line in the audit log before the caller is told.

use std::sync::Arc;

use cert_chain::{Digest32, Tenant, VmId, VrotId};

use super::manufacturing::Product;
use super::registry::{Unsettled, Vrot, VrotKey};
use super::renewal::{Occasion, is_not_ready};
use super::{Counter, Manager, ManagerError};
use crate::audit::Event;
use crate::backend::{Backend, BackendError, Duty, Ended, Ending};
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
        if let Some(vm) = order.vm
            && self.pool.has(VrotId::from_uuid(*vm.as_uuid()))
        {
            // A key would lead to either.
            return Err(ManagerError::VmTaken { vm });
        }
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
        let created = Arc::new(Vrot::new(record));
        // Before anybody can find it: who does waits until its backend is known.
        let gate = created.gate.lock().await;
        self.registry.enter(Arc::clone(&created));
        drop(claimed);
        self.counters.increment(Counter::Created);
        match order.launch {
            Launch::Now => self.install(&created, backend),
            Launch::Later => drop(backend.stop().await?),
        }
        drop(gate);
        Ok(created)
    }

    /// Gives a vRoT that is started its backend. Its gate must be held.
    fn install(&self, vrot: &Vrot, backend: Backend) {
        let id = vrot.record().vrot;
        let (incarnation, has_ended) = (backend.incarnation(), backend.has_ended());
        vrot.set_backend(Some(backend));
        self.counters.increment(Counter::Started);
        if has_ended {
            // When it said so, nobody could find it under this name.
            let reason = "it ended while it was started".to_owned();
            let ended = Ended {
                incarnation,
                ending: Ending::Unordered { reason },
                state: None,
            };
            // The receiver lives as long as the manager.
            let _ = self.ended.send((id, ended));
        }
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
        let mut commit = Batch::default()
            .put(record.vrot, Part::Record, record.to_bytes())
            .changing_ownership();
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
        vrot.check_settled()?;
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
            let _ = backend.stop().await;
            return Err(error);
        }
        tracing::info!(vrot = %record.vrot, ?beginning, "started");
        vrot.set_record(record);
        self.install(&vrot, backend);
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
                    let renewed = self.renew(record, keyring, backend, now, Occasion::Start);
                    match renewed.await {
                        // A saved VM is to find its TPM as it was.
                        Err(error) if is_not_ready(&error) => {
                            tracing::info!(vrot = %id, "it is renewed once its VM is back");
                        }
                        outcome => outcome?,
                    }
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
        vrot.check_settled()?;
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
        end(&vrot, &backend).await;
        tracing::info!(vrot = %record.vrot, "suspended");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    async fn put_aside(&self, record: &VrotRecord, backend: &Backend) -> Result<(), ManagerError> {
        let id = record.vrot;
        let volatile = backend.suspend().await?;
        let volatile = volatile.ok_or(ManagerError::NothingToSuspend { vrot: id })?;
        backend.settle().await?;
        self.record(Event::VrotSuspended { vrot: id }).await?;
        let change = Batch::default()
            .put(id, Part::Record, record.to_bytes())
            .put(id, Part::Volatile, volatile);
        Ok(self.journal.commit(change).await?)
    }

    /// Stops a vRoT. Returns when its state is durable. While it cannot be made durable, nothing
    /// is stopped: the backend has the only copy.
    pub async fn stop(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.registry.find(key)?;
        let gate = vrot.gate.lock().await;
        vrot.check_settled()?;
        let mut record = vrot.record();
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::Ordered, Timestamp::now())?;
        if vrot.unsettled() == Some(Unsettled::OtherVersion) {
            // It cannot be asked for more.
            Backend::dismiss(&self.folder(record.vrot), None).await?;
            vrot.set_unsettled(None);
        }
        let backend = vrot.backend();
        if let Some(backend) = &backend {
            calm(backend).await?;
        }
        if let Err(error) = self.commit_stop(&record).await {
            if let Some(backend) = &backend {
                backend.go_on().await;
            }
            return Err(error);
        }
        if let Some(backend) = &backend {
            end(&vrot, backend).await;
        }
        self.counters.increment(Counter::Stopped);
        tracing::info!(vrot = %record.vrot, "stopped");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    async fn commit_stop(&self, record: &VrotRecord) -> Result<(), ManagerError> {
        self.record(Event::VrotStopped { vrot: record.vrot })
            .await?;
        let change = Batch::default()
            .put(record.vrot, Part::Record, record.to_bytes())
            .remove(record.vrot, Part::Volatile);
        Ok(self.journal.commit(change).await?)
    }

    /// Deletes a vRoT: its key first, so that a crash on the way leaves nothing in the store that
    /// opens. A crash after that is finished at the next start.
    pub async fn delete(&self, key: VrotKey) -> Result<(), ManagerError> {
        let vrot = self.registry.find(key)?;
        let _gate = vrot.gate.lock().await;
        vrot.check_settled()?;
        let record = vrot.record();
        let now = Timestamp::now();
        let deleted = record.lifecycle.delete(now)?;
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
        // Not before: by this line a later recovery knows that the vRoT must not come back.
        self.record(Event::VrotDeleted {
            vrot: record.vrot,
            vm: record.vm,
        })
        .await?;
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

/// Has the guest wait, and everything that it was told be durable. What does not answer, or has
/// ended, has nothing to say.
async fn calm(backend: &Backend) -> Result<(), BackendError> {
    let calmed = async {
        match backend.suspend().await {
            // The volatile state goes with the backend.
            Ok(_) | Err(BackendError::Deadline { .. }) => {}
            Err(error) => return Err(error),
        }
        backend.settle().await
    };
    match calmed.await {
        Err(BackendError::Ended { .. }) => backend.concluded().await,
        Err(error) => {
            backend.go_on().await;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Ends a backend of which the store does not say any more that it runs.
async fn end(vrot: &Vrot, backend: &Backend) {
    if let Err(error) = backend.stop().await {
        tracing::debug!(vrot = %vrot.record().vrot, %error, "it did not need to be ended");
    }
    vrot.set_backend(None);
}
