//! Create, start, suspend, resume, stop.
//!
//! Each transition holds the vRoT's gate, does what takes time, commits the new record, and only
//! then lets others see it. What happens is a line in the audit log before it does; where the
//! record is not committed after all, another line says so.

use std::sync::Arc;

use api_types::{Timestamp, VrotKey};
use cert_chain::{Tenant, VmId, VrotId};
use guarded_state::disk::{Batch, Part};
use tokio::sync::watch;
use vrot_manufacture::Chain;

use crate::audit::Event;
use crate::backend::{Backend, BackendError, Ended, Ending, Role};
use crate::keys::Keyring;
use crate::manager::certification::renewal::{CertificateStep, has_valid_eks, is_not_ready};
use crate::manager::factory::manufacturing::ManufacturedVrot;
use crate::manager::registry::{Adoption, Vrot};
use crate::manager::{Counter, Manager, ManagerError};
use crate::vrot::{LifecycleError, Owner, StopCause, VrotName, VrotRecord};

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

/// Whether the audit log has the line of a creation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreationLine {
    NotWritten,
    Written,
}

/// How a vRoT comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartMode {
    /// As after a loss of power.
    Start,
    /// As it was.
    Resume,
}

impl Manager {
    /// Gives a VM a vRoT: one of the pool, or a new one.
    pub async fn create(self: &Arc<Self>, order: Order) -> Result<Arc<Vrot>, ManagerError> {
        let claimed = order.vm.map(|vm| self.registry.reserve(vm)).transpose()?;
        if let Some(vm) = order.vm
            && self.pool.has(VrotId::from_uuid(*vm.as_uuid()))
        {
            // A key would lead to either.
            return Err(ManagerError::VmTaken { vm });
        }
        let mut made = match self.pool.take(&order.tenant) {
            Some(member) => member,
            None => {
                let vm = order.vm.unwrap_or_else(VmId::random);
                self.manufacture(vm, order.tenant.clone()).await?
            }
        };
        let certified = watch::Sender::default();
        let handed_over = self.hand_over(&order, &mut made, certified.subscribe());
        let handed_over = match handed_over.await {
            Ok(change) => {
                let committed = self.journal.commit(change).await;
                committed.map_err(|error| (CreationLine::Written, error.into()))
            }
            Err(error) => Err((CreationLine::NotWritten, error)),
        };
        if let Err((line, error)) = handed_over {
            // It must not run while the store says that it does not.
            let _ = made.backend.stop().await;
            self.undo_creation(&made, line).await;
            return Err(error);
        }
        let ManufacturedVrot {
            record, backend, ..
        } = made;
        tracing::info!(vrot = %record.vrot, vm = %record.vm, "created");
        let created = Arc::new(Vrot::new(record, certified));
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
        self.issue_pending(&created);
        Ok(created)
    }

    /// A vRoT that was not handed over is destroyed, never reused.
    async fn undo_creation(&self, made: &ManufacturedVrot, line: CreationLine) {
        let vrot = made.record.vrot;
        // One that was not made ahead the store never had.
        if made.unsaved.is_none() {
            let owner = (line == CreationLine::Written).then(|| Owner::ordered_now(&made.record));
            if let Err(error) = self.discard(vrot, owner).await {
                tracing::warn!(%vrot, %error, "a vRoT is left in the store that belongs to no VM");
            }
        } else if line == CreationLine::Written {
            self.record_as_it_was(vrot, None).await;
        }
    }

    /// Gives a vRoT that is started its backend. Its gate must be held.
    fn install(&self, vrot: &Vrot, backend: Backend) {
        let id = vrot.record().vrot;
        let (instance, has_ended) = (backend.instance(), backend.has_ended());
        vrot.set_backend(Some(backend));
        self.counters.increment(Counter::Started);
        if has_ended {
            // Its end was reported before it was in the registry under this id.
            let reason = "it ended while it was started".to_owned();
            let ended = Ended {
                instance,
                ending: Ending::Unordered { reason },
                state: None,
            };
            // The receiver lives as long as the manager.
            let _ = self.ended.send((id, ended));
        }
    }

    /// Makes a manufactured vRoT that of a VM, and says so in the audit log; what is to change in
    /// the store.
    async fn hand_over(
        &self,
        order: &Order,
        made: &mut ManufacturedVrot,
        certified: watch::Receiver<bool>,
    ) -> Result<Batch, ManagerError> {
        let now = Timestamp::now();
        let ManufacturedVrot {
            record,
            backend,
            unsaved,
        } = made;
        let vm = order.vm.unwrap_or(record.vm);
        if (vm, &order.tenant) != (record.vm, &record.tenant) || self.is_renewal_due(record, now) {
            record.vm = vm;
            record.tenant = order.tenant.clone();
            let keyring = self.host.keyring().await?;
            let keeps_eks = has_valid_eks(&record.identity, now);
            record.identity.withdraw(keeps_eks);
            self.withdraw_pending(record, &keyring, backend, Chain::Same)
                .await?;
        }
        if order.launch == Launch::Later && record.identity.pending().is_some() {
            let keyring = self.host.keyring().await?;
            self.issue_at_once(record, &keyring, backend).await?;
        }
        record.name = order.name.clone();
        record.lifecycle = record.lifecycle.assign(now)?;
        let mut events = vec![Event::VrotCreated {
            vrot: record.vrot,
            vm: record.vm,
            tenant: record.tenant.clone(),
            generation: record.generation,
            vik: record.identity.vik(record.vrot)?.name(),
            certificate: record.identity.vik_certificate_digest(),
        }];
        let changed = match order.launch {
            Launch::Now => {
                record.lifecycle = record.lifecycle.start(backend.observed().process, now)?;
                events.push(Event::VrotStarted { vrot: record.vrot });
                let role = self.guest_role(record, certified)?;
                backend.serve(&self.zygote, role).await?
            }
            Launch::Later => backend.take_state().await?,
        };
        let mut commit = record.to_batch().changing_ownership();
        if let Some(state) = changed.as_ref().or(unsaved.as_ref()) {
            commit = commit.put(record.vrot, Part::Permanent, state.to_bytes());
        }
        self.record_all(events).await?;
        Ok(commit)
    }

    /// Starts a vRoT. Returns when a VMM can attach.
    pub async fn start(self: &Arc<Self>, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, StartMode::Start).await
    }

    /// Starts a suspended vRoT with the volatile state that it had. Returns when a VMM can
    /// attach. The volatile state is used up: it never comes back.
    pub async fn resume(self: &Arc<Self>, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        self.bring_up(key, StartMode::Resume).await
    }

    async fn bring_up(
        self: &Arc<Self>,
        key: VrotKey,
        mode: StartMode,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        match mode {
            StartMode::Start => vrot.record().lifecycle.check_start()?,
            StartMode::Resume => vrot.record().lifecycle.check_resume()?,
        }
        // The next backend would write over what the last one noted.
        self.record_loss(&vrot).await?;
        let mut record = vrot.record_to_change();
        let keyring = self.host.keyring().await?;
        let role = Role::Guest(self.guest_role(&record, vrot.certified())?);
        let backend = self.open_backend(&record, role).await?;
        let begun = self
            .begin(&vrot, &mut record, &keyring, &backend, mode)
            .await;
        if let Err(error) = begun {
            // It must not run while the store says that it does not.
            let _ = backend.stop().await;
            return Err(error);
        }
        tracing::info!(vrot = %record.vrot, ?mode, "started");
        vrot.set_record(record);
        self.install(&vrot, backend);
        drop(gate);
        self.issue_pending(&vrot);
        Ok(vrot)
    }

    /// What follows once the backend is up: a certificate that lasts, and the record.
    async fn begin(
        &self,
        vrot: &Vrot,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        mode: StartMode,
    ) -> Result<(), ManagerError> {
        let now = Timestamp::now();
        let process = backend.observed().process;
        let id = record.vrot;
        let mut events = Vec::new();
        match mode {
            StartMode::Start => {
                if self.is_renewal_due(record, now) {
                    let step = CertificateStep::Start;
                    match self.certify(record, keyring, backend, now, step).await {
                        // A saved VM is to find its TPM as it was.
                        Err(error) if is_not_ready(&error) => {
                            tracing::info!(vrot = %id, "it is renewed once its VM is back");
                        }
                        certified => events.push(certified?),
                    }
                }
                self.reserve_pending(record, keyring, backend).await;
                self.look_after_certificates(record, keyring, backend).await;
                record.lifecycle = record.lifecycle.start(process, now)?;
                events.push(Event::VrotStarted { vrot: id });
            }
            // A command now would switch the TPM on, and the volatile state would be gone.
            StartMode::Resume => {
                record.lifecycle = record.lifecycle.resume(process, now)?;
                events.push(Event::VrotResumed { vrot: id });
            }
        }
        let change = record.to_batch().remove(id, Part::Volatile);
        let renewed = events.len() > 1;
        self.change(vrot, events, change).await?;
        if renewed {
            self.renewals.succeeded(id);
        }
        Ok(())
    }

    /// Writes the lines of a change and makes it durable. Where the store does not take it, another
    /// line says so.
    pub(in crate::manager) async fn change(
        &self,
        vrot: &Vrot,
        events: Vec<Event>,
        change: Batch,
    ) -> Result<(), ManagerError> {
        self.record_all(events).await?;
        let committed = self.journal.commit(change).await;
        if committed.is_err() {
            let before = vrot.record();
            self.record_as_it_was(before.vrot, Some(&before)).await;
        }
        Ok(committed?)
    }

    /// Stops a vRoT and keeps its volatile state. Returns when all of it is durable. The VM must
    /// be paused: what it does to its TPM meanwhile is lost.
    pub async fn suspend(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        record.lifecycle = record.lifecycle.suspend(Timestamp::now())?;
        let backend = vrot.backend().ok_or(LifecycleError::NotRunning {
            state: "without a backend",
        })?;
        // It ends only once its state is in the store: it has the only copy until then.
        if let Err(error) = self.put_aside(&vrot, &record, &backend).await {
            backend.go_on().await;
            return Err(error);
        }
        end(&vrot, &backend).await;
        tracing::info!(vrot = %record.vrot, "suspended");
        vrot.set_record(record);
        drop(gate);
        Ok(vrot)
    }

    async fn put_aside(
        &self,
        vrot: &Vrot,
        record: &VrotRecord,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        let id = record.vrot;
        let volatile = backend.suspend().await?;
        let volatile = volatile.ok_or(ManagerError::NothingToSuspend { vrot: id })?;
        backend.settle().await?;
        let change = record.to_batch().put(id, Part::Volatile, volatile);
        self.change(vrot, vec![Event::VrotSuspended { vrot: id }], change)
            .await
    }

    /// Stops a vRoT. Returns when its state is durable. While it cannot be made durable, nothing
    /// is stopped: the backend has the only copy.
    pub async fn stop(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::Ordered, Timestamp::now())?;
        if vrot.adoption() == Some(Adoption::OtherVersion) {
            // It has the only copy of what it did not hand over yet: the store must take something.
            self.commit_record(&vrot.record()).await?;
            self.dismiss(record.vrot, Some(record.generation)).await?;
            vrot.set_adoption(None);
        }
        let backend = vrot.backend();
        let quiesced = match &backend {
            Some(backend) => quiesce(backend).await?,
            None => Quiesced::Ended,
        };
        if let Err(error) = self.commit_stop(&vrot, &record).await {
            if let Some(backend) = &backend {
                backend.go_on().await;
            }
            return Err(error);
        }
        if let Some(backend) = &backend {
            match quiesced {
                Quiesced::Silent => {
                    tracing::warn!(
                        vrot = %record.vrot,
                        "the backend does not answer and is killed: what its guest did last may be lost"
                    );
                    backend.kill().await;
                }
                // Its volatile state goes with it, and is not put aside: the TPM is to be
                // shut down.
                Quiesced::GuestWaits => backend.go_on().await,
                Quiesced::Ended => {}
            }
            end(&vrot, backend).await;
        }
        self.counters.increment(Counter::Stopped);
        tracing::info!(vrot = %record.vrot, "stopped");
        vrot.set_record(record);
        self.try_to_record_loss(&vrot).await;
        drop(gate);
        Ok(vrot)
    }

    async fn commit_stop(&self, vrot: &Vrot, record: &VrotRecord) -> Result<(), ManagerError> {
        let id = record.vrot;
        let change = record.to_batch().remove(id, Part::Volatile);
        self.change(vrot, vec![Event::VrotStopped { vrot: id }], change)
            .await
    }

    pub(in crate::manager) async fn commit_record(
        &self,
        record: &VrotRecord,
    ) -> Result<(), ManagerError> {
        Ok(self.journal.commit(record.to_batch()).await?)
    }
}

/// How a backend is that is about to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quiesced {
    /// Its guest waits.
    GuestWaits,
    /// It does not answer.
    Silent,
    /// It has ended by itself.
    Ended,
}

/// Has the guest wait, and everything that it was told be durable. What does not answer has
/// nothing to say but what it pushed before, and what has ended has nothing to say at all.
async fn quiesce(backend: &Backend) -> Result<Quiesced, BackendError> {
    let quiesced = async {
        let quiesced = match backend.suspend().await {
            // The volatile state goes with the backend.
            Ok(_) => Quiesced::GuestWaits,
            Err(BackendError::Deadline { .. }) => Quiesced::Silent,
            Err(error) => return Err(error),
        };
        backend.settle().await.map(|()| quiesced)
    };
    match quiesced.await {
        Err(BackendError::Ended { .. }) => backend.concluded().await.map(|()| Quiesced::Ended),
        Err(error) => {
            backend.go_on().await;
            Err(error)
        }
        quiesced => quiesced,
    }
}

/// Ends a backend of which the store does not say any more that it runs.
async fn end(vrot: &Vrot, backend: &Backend) {
    if let Err(error) = backend.stop().await {
        tracing::debug!(vrot = %vrot.record().vrot, %error, "it did not need to be ended");
    }
    vrot.set_backend(None);
}
