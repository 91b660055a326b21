//! Create, start, stop, delete.
//!
//! Each transition holds the vRoT's gate, does what takes time, commits the new record, and only
//! then lets others see it. What happened is a line in the audit log before the caller is told.

use std::sync::Arc;

use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::{Digest32, Generation, Tenant, VmId, VrotId};
use vtpm_backend::message::{Open, StateKey as BackendKey};

use super::registry::{Vrot, VrotKey};
use super::{Counter, Manager, ManagerError, blocking};
use crate::audit::Event;
use crate::backend::{Backend, DURABILITY_DEADLINE, Duty, RuntimeFolder};
use crate::keys::{Keyring, Purpose, StateKey};
use crate::manufacture::{
    ManufactureOrder, Manufactured, NvAuthority, manufacture_over, renew_vik_certificate,
};
use crate::store::{Batch, Part, StateBlob};
use crate::timestamp::Timestamp;
use crate::vrot::{Identity, Lifecycle, StopCause, StoredVrot, Tombstone, VrotName, VrotRecord};

/// What is to be created.
#[derive(Clone, Debug)]
pub struct Order {
    /// The VM.
    pub vm: VmId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// What people call it.
    pub name: Option<VrotName>,
}

/// A vRoT's first generation; sanctioned restores and copies count on from it.
const FIRST_GENERATION: Generation = Generation::new(1);

impl Manager {
    /// Manufactures a vRoT for a VM. It can be started afterwards.
    pub async fn create(&self, order: Order) -> Result<Arc<Vrot>, ManagerError> {
        let reservation = self.registry.reserve(order.vm)?;
        let (enrolment, signer) = self.host.issuer().await?;
        let keyring = self.host.keyring().await?;
        let vrot = VrotId::random();
        let key = Keyring::generate()?;
        let now = Timestamp::now();
        let specification = ManufactureOrder {
            vm: order.vm,
            vrot,
            tenant: order.tenant.clone(),
            generation: FIRST_GENERATION,
            manager: self.program,
            backend: self.backend_digest().await?,
            host_certificate: enrolment.certificate.der().to_vec(),
            now: now.unix_time(),
        };
        let folder = RuntimeFolder::of(&self.config.runtime_dir, vrot);
        let open = open_message(vrot, FIRST_GENERATION, &key, None);
        let backend =
            Backend::launch(&self.config.backend, folder, open, Duty::Manufacture).await?;
        let mut channel = backend.channel();
        let ordered = specification.clone();
        let manufactured =
            blocking(move || manufacture_over(&ordered, &mut channel, &signer)).await;
        let ended = backend.stop().await;
        let manufactured: Manufactured = manufactured?.map_err(ManagerError::Manufacture)?;
        let state = ended?.state.ok_or(ManagerError::NoState)?;

        let record = VrotRecord {
            vrot,
            vm: order.vm,
            tenant: order.tenant,
            name: order.name,
            generation: FIRST_GENERATION,
            lifecycle: Lifecycle::Manufactured { at: now }.assign(now)?,
            state_key: keyring.wrap(vrot, Purpose::State, key.as_ref())?,
            nv_authority: keyring.wrap(
                vrot,
                Purpose::NvIndices,
                manufactured.nv_authority.expose(),
            )?,
            identity: Identity::new(
                &manufactured,
                &specification.host_certificate,
                specification.manager,
                specification.backend,
                now,
            ),
        };
        self.record(Event::VrotCreated {
            vrot,
            vm: record.vm,
            tenant: record.tenant.clone(),
            generation: record.generation,
            vik: manufactured.vik.name(),
            certificate: Digest32::of(&manufactured.vik_certificate),
        })
        .await?;
        let commit = Batch::default()
            .put(vrot, Part::Record, record.to_bytes())
            .put(vrot, Part::Permanent, state.to_bytes());
        self.journal.commit(commit).await?;
        let created = self.registry.insert(record);
        drop(reservation);
        self.counters.increment(Counter::Created);
        tracing::info!(%vrot, vm = %order.vm, "created");
        Ok(created)
    }

    /// Starts a vRoT. Returns when a VMM can attach.
    pub async fn start(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.registry.find(key)?;
        let _gate = vrot.gate.lock().await;
        let mut record = vrot.record();
        record.lifecycle.check_start()?;
        let id = record.vrot;
        let keyring = self.host.keyring().await?;
        let state_key = keyring.state_key(id, &record.state_key)?;
        let state = self.journal.read(id, Part::Permanent).await?;
        let state = state.ok_or(ManagerError::StateMissing { vrot: id })?;
        let state = StateBlob::from_bytes(&state)?;

        let folder = RuntimeFolder::of(&self.config.runtime_dir, id);
        let open = open_message(id, record.generation, &state_key, Some(state));
        let duty = Duty::Guest(self.guest_duty(&record)?);
        let backend = Backend::launch(&self.config.backend, folder, open, duty).await?;
        let begun = self.begin(&vrot, &mut record, &keyring, &backend).await;
        if let Err(error) = begun {
            // It must not run while the store says that it does not.
            backend.stop().await?;
            return Err(error);
        }
        vrot.set_record(record);
        vrot.set_backend(Some(backend));
        self.counters.increment(Counter::Started);
        tracing::info!(vrot = %id, "started");
        drop(_gate);
        Ok(vrot)
    }

    /// What follows once the backend is up: a certificate that lasts, and the record.
    async fn begin(
        &self,
        vrot: &Vrot,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        let now = Timestamp::now();
        let age = now
            .seconds()
            .saturating_sub(record.identity.vik_issued_at.seconds());
        if age > VIK_LIFETIME.as_secs() / 2 {
            self.renew(record, keyring, backend, now).await?;
        }
        record.lifecycle = record.lifecycle.start(backend.observed().process, now)?;
        self.record(Event::VrotStarted { vrot: record.vrot })
            .await?;
        self.commit_record(record).await.inspect_err(|_| {
            tracing::error!(vrot = %vrot.record().vrot, "not started: the store did not take it");
        })
    }

    /// A new vIK certificate in the old one's place, before a guest is there.
    async fn renew(
        &self,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        now: Timestamp,
    ) -> Result<(), ManagerError> {
        let vrot = record.vrot;
        let (enrolment, signer) = self.host.issuer().await?;
        let authority = keyring.unwrap(vrot, Purpose::NvIndices, &record.nv_authority)?;
        let authority = authority
            .as_slice()
            .try_into()
            .map(NvAuthority::from_bytes)
            .map_err(|_| crate::keys::KeyError::Unwrap {
                vrot,
                purpose: Purpose::NvIndices,
            })?;
        let order = ManufactureOrder {
            vm: record.vm,
            vrot,
            tenant: record.tenant.clone(),
            generation: record.generation,
            manager: self.program,
            backend: self.backend_digest().await?,
            host_certificate: enrolment.certificate.der().to_vec(),
            now: now.unix_time(),
        };
        let expected = record.identity.vik(vrot)?.name();
        let mut channel = backend.channel();
        let specification = order.clone();
        let certificate = blocking(move || {
            renew_vik_certificate(&specification, &expected, &authority, &mut channel, &signer)
        })
        .await?
        .map_err(ManagerError::Manufacture)?;
        record.identity.vik_certificate = certificate.to_vec().into();
        record.identity.manager = order.manager;
        record.identity.backend = order.backend;
        record.identity.vik_issued_at = now;
        self.record(Event::CertificateRenewed {
            vrot,
            certificate: Digest32::of(&certificate),
        })
        .await
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
        self.commit_record(&record).await?;
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
        record.lifecycle.delete(now)?;
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

fn open_message(
    vrot: VrotId,
    generation: Generation,
    key: &StateKey,
    state: Option<StateBlob>,
) -> Open {
    Open {
        vrot: (*vrot.as_bytes()).into(),
        generation: generation.number(),
        key: BackendKey::new(**key),
        permanent: state.map(|state| state.sealed),
        durability_deadline_ms: u32::try_from(DURABILITY_DEADLINE.as_millis()).unwrap_or(u32::MAX),
    }
}
