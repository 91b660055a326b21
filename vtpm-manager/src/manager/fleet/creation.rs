//! A vRoT for a VM: one that was made ahead, or a new one.

use std::sync::Arc;

use api_types::{Timestamp, VrotKey};
use attestation::launch::Launch as Measured;
use backend_link::transport::Transport;
use cert_chain::{Tenant, VmId, VrotId};
use guarded_state::disk::{Batch, Part};
use tokio::sync::watch;
use vrot_manufacture::Chain;
use zeroize::Zeroizing;

use super::{Fleet, launches};
use crate::audit::Event;
use crate::manager::certification::has_valid_eks;
use crate::manager::counters::Counter;
use crate::manager::error::ManagerError;
use crate::manager::factory::ManufacturedVrot;
use crate::manager::registry::Vrot;
use crate::vrot::{FolderBinding, Origin, Owner, VrotName};

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
    /// The folder that it is for, if its VM's launcher keeps one.
    pub folder: Option<FolderBinding>,
    /// Whether it is never started without a measurement.
    pub requires_launch: bool,
    /// What was measured for its first start.
    pub measured: Option<Measured>,
    /// How its VM reaches it.
    pub transport: Transport,
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

impl Fleet {
    /// Gives a VM a vRoT: one of the pool, or a new one.
    ///
    /// What is made ahead waits as most VMs want it. For the others the process ends, and another is
    /// started: a confined process cannot become what it was not confined for.
    pub async fn create(self: &Arc<Self>, order: Order) -> Result<Arc<Vrot>, ManagerError> {
        if order.transport.is_emulator() || order.launch == Launch::Later {
            return self.create_from(order, None).await;
        }
        let later = Order {
            launch: Launch::Later,
            ..order
        };
        let created = self.create_from(later, None).await?;
        let key = VrotKey::from(created.record().vrot);
        match self.start(key).await {
            Ok(started) => Ok(started),
            Err(error) => {
                if let Err(left) = self.delete(key).await {
                    tracing::warn!(vrot = %created.record().vrot, %left, "it stays, and does not run");
                }
                Err(error)
            }
        }
    }

    /// Gives a VM a vRoT that is the TPM that it had elsewhere, by that one's permanent state.
    pub async fn import(
        self: &Arc<Self>,
        order: Order,
        state: Zeroizing<Vec<u8>>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        self.create_from(order, Some(state)).await
    }

    async fn create_from(
        self: &Arc<Self>,
        order: Order,
        state: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let requires_launch = order.requires_launch || self.config.launch.requires(&order.tenant);
        if order.launch == Launch::Now && requires_launch && order.measured.is_none() {
            return Err(ManagerError::LaunchNotMeasuredForNew);
        }
        let claimed = order.vm.map(|vm| self.registry.reserve(vm)).transpose()?;
        if let Some(vm) = order.vm
            && self.factory.has(VrotId::from_uuid(*vm.as_uuid()))
        {
            // A key would lead to either.
            return Err(ManagerError::VmTaken { vm });
        }
        let vm = || order.vm.unwrap_or_else(VmId::random);
        let mut made = match &state {
            Some(state) => {
                let tenant = order.tenant.clone();
                self.factory.take_over(vm(), tenant, state).await?
            }
            None => match self.factory.take(&order.tenant) {
                Some(member) => member,
                None => {
                    let tenant = order.tenant.clone();
                    self.factory.manufacture(vm(), tenant).await?
                }
            },
        };
        let certified = watch::Sender::default();
        let tpm = (state.is_some()).then(|| self.registry.reserve_tpm(&made.record));
        let tpm = match tpm.transpose() {
            Ok(tpm) => tpm,
            Err(error) => {
                let _ = made.backend.stop().await;
                return Err(error);
            }
        };
        drop(state);
        let handed_over = self.hand_over(&order, &mut made, certified.subscribe());
        let handed_over = match handed_over.await {
            Ok(change) => {
                let committed = self.guarded.commit(change).await;
                committed.map_err(|error| (CreationLine::Written, error))
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
        let created = Arc::new(self.registry.vrot(record, certified));
        // Taken before it can be found: other orders for it wait until its backend is known.
        let gate = created.gate.lock().await;
        self.registry.enter(Arc::clone(&created));
        created.tell_created();
        drop((claimed, tpm));
        self.counters.increment(Counter::Created);
        match order.launch {
            Launch::Now => self.install(&created, backend),
            Launch::Later => drop(backend.stop().await?),
        }
        drop(gate);
        self.certification.issue_pending(&created);
        Ok(created)
    }

    /// A vRoT that was not handed over is destroyed, never reused.
    async fn undo_creation(&self, made: &ManufacturedVrot, line: CreationLine) {
        let vrot = made.record.vrot;
        // One that was not made ahead the store never had.
        if made.unsaved.is_none() {
            let owner = (line == CreationLine::Written).then(|| Owner::ordered_now(&made.record));
            if let Err(error) = self.guarded.discard(vrot, owner).await {
                tracing::warn!(%vrot, %error, "a vRoT is left in the store that belongs to no VM");
            }
        } else if line == CreationLine::Written {
            self.guarded.record_as_it_was(vrot, None).await;
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
        if (vm, &order.tenant) != (record.vm, &record.tenant)
            || self.certification.is_renewal_due(record, now)
        {
            record.vm = vm;
            record.tenant = order.tenant.clone();
            let keeps_eks = has_valid_eks(&record.identity, now);
            record.identity.withdraw(keeps_eks);
            self.certification
                .withdraw_pending(record, backend, Chain::Same)
                .await?;
        }
        if order.launch == Launch::Later && record.identity.pending().is_some() {
            self.certification.issue_at_once(record, backend).await?;
        }
        record.name = order.name.clone();
        record.folder = order.folder.clone();
        record.requires_launch = order.requires_launch;
        record.launch.clone_from(&order.measured);
        record.transport = order.transport;
        record.lifecycle = record.lifecycle.assign(now)?;
        let mut events = vec![Event::VrotCreated {
            vrot: record.vrot,
            vm: record.vm,
            tenant: record.tenant.clone(),
            generation: record.generation,
            vik: record.identity.vik(record.vrot)?.name(),
            certificate: record.identity.vik_certificate_digest(),
        }];
        events.extend(
            (order.measured.as_ref()).map(|launch| launches::measured(record.vrot, launch)),
        );
        if record.origin == Some(Origin::Imported) {
            events.push(Event::VrotImported {
                vrot: record.vrot,
                vm: record.vm,
                ek_rsa: record.identity.ek_rsa(record.vrot)?.name(),
            });
        }
        let changed = match order.launch {
            Launch::Now => {
                record.lifecycle = record.lifecycle.start(backend.observed().process, now)?;
                events.push(Event::VrotStarted { vrot: record.vrot });
                let role = self.guest_role(record, certified)?;
                self.launcher.serve(backend, role).await?
            }
            Launch::Later => backend.take_state().await?,
        };
        let mut commit = record.to_batch().changing_ownership();
        if let Some(state) = changed.as_ref().or(unsaved.as_ref()) {
            commit = commit.put(record.vrot, Part::Permanent, state.to_bytes());
        }
        self.guarded.record_all(events).await?;
        Ok(commit)
    }
}
