//! Which vRoTs there are.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use api_types::wire::{EventDetails, EventKind};
use api_types::{Timestamp, VrotKey};
use cert_chain::{Tenant, Validity, VmId, VrotId};
use tokio::sync::watch;
use vrot_events::{EventLog, Place};

use super::error::ManagerError;
use super::happenings;
use crate::backend::{Backend, Observed};
use crate::vrot::{Pending, VrotRecord};

/// Every vRoT that exists, or is being made.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Mutex<Entries>,
    events: Arc<EventLog>,
}

/// One vRoT.
#[derive(Debug)]
pub struct Vrot {
    /// Held during each transition of the vRoT's lifecycle: one at a time.
    pub(super) gate: tokio::sync::Mutex<()>,
    recorded: RwLock<Recorded>,
    /// Whether its identity key has a certificate: evidence waits for that.
    certified: watch::Sender<bool>,
    /// Whether somebody wanted evidence of it that its certificate was missing for.
    asked_for: AtomicBool,
    /// The live backend of a running vRoT.
    backend: RwLock<Option<Arc<Backend>>>,
    /// Why it is not known what became of the backend that an earlier manager left.
    adoption: Mutex<Option<Adoption>>,
    /// When it was started again because its backend had ended by itself.
    restarts: Mutex<Vec<Instant>>,
    /// Is told what becomes of it.
    events: Arc<EventLog>,
}

/// What the store holds of a vRoT, and what was read in it.
#[derive(Debug)]
struct Recorded {
    record: Arc<VrotRecord>,
    vik_not_after: Option<Timestamp>,
}

/// Why a backend that an earlier manager left is neither served nor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adoption {
    /// It has not answered yet, or has not ended yet.
    Waiting,
    /// It speaks another version of our messages. It serves its guest until it is stopped.
    OtherVersion,
}

/// The claim on a VM while its vRoT is being made. Given up when dropped.
pub(super) struct Reservation<'a> {
    registry: &'a Registry,
    vm: VmId,
}

/// The claim on a TPM that had its life elsewhere, while it becomes a vRoT. Given up when dropped.
pub(super) struct TpmReservation<'a> {
    registry: &'a Registry,
    ek: Vec<u8>,
}

#[derive(Debug, Default)]
struct Entries {
    vrots: BTreeMap<VrotId, Arc<Vrot>>,
    vms: BTreeMap<VmId, VrotId>,
    /// The vRoTs of each tenant by their VMs: who asks for its own waits no longer because others have
    /// many, and of what is not its own nothing is looked up.
    tenants: HashMap<Tenant, BTreeMap<VmId, Arc<Vrot>>>,
    reserved: BTreeSet<VmId>,
    /// The TPMs that are taken over, by their endorsement keys, and for which VMs.
    tpms: BTreeMap<Vec<u8>, VmId>,
}

const HOUR: Duration = Duration::from_secs(60 * 60);

impl Registry {
    /// Without vRoTs. What becomes of them is told there.
    pub(super) fn new(events: Arc<EventLog>) -> Self {
        Self {
            entries: Mutex::default(),
            events,
        }
    }

    /// The vRoT with this number, or of the VM with this number.
    pub fn find(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let entries = self.entries();
        let vm = VmId::from_uuid(key.number());
        let by_vm = entries.vms.get(&vm).copied();
        let vrot = by_vm.unwrap_or(VrotId::from_uuid(key.number()));
        let unknown = || match entries.reserved.contains(&vm) {
            true => ManagerError::BeingMade { vm },
            false => ManagerError::UnknownVrot { key },
        };
        entries.vrots.get(&vrot).cloned().ok_or_else(unknown)
    }

    /// The vRoT with this number. No VM's number leads to it, whoever chose that.
    pub(super) fn find_vrot(&self, vrot: VrotId) -> Option<Arc<Vrot>> {
        self.entries().vrots.get(&vrot).cloned()
    }

    /// The vRoTs of one tenant in the order of their VMs' numbers, found without those of others.
    pub fn of_tenant(&self, tenant: &Tenant) -> Vec<Arc<Vrot>> {
        let entries = self.entries();
        let own = entries.tenants.get(tenant);
        own.map_or_else(Vec::new, |own| own.values().cloned().collect())
    }

    /// The vRoT of a VM, if both are this tenant's. Whatever else there is under that number, and whether
    /// there is anything, makes no difference.
    pub fn of_tenants_vm(&self, tenant: &Tenant, vm: VmId) -> Option<Arc<Vrot>> {
        let entries = self.entries();
        entries.tenants.get(tenant)?.get(&vm).cloned()
    }

    /// All vRoTs.
    pub fn all(&self) -> Vec<Arc<Vrot>> {
        self.entries().vrots.values().cloned().collect()
    }

    /// Claims a VM for a vRoT that is about to be made.
    pub(super) fn reserve(&self, vm: VmId) -> Result<Reservation<'_>, ManagerError> {
        let mut entries = self.entries();
        // A VM's id equal to a vRoT's would make keys ambiguous.
        let is_vrot = entries
            .vrots
            .contains_key(&VrotId::from_uuid(*vm.as_uuid()));
        if is_vrot || entries.vms.contains_key(&vm) || !entries.reserved.insert(vm) {
            return Err(ManagerError::VmTaken { vm });
        }
        Ok(Reservation { registry: self, vm })
    }

    /// Claims a TPM that is about to become the vRoT of this record, unless it is one already.
    pub(super) fn reserve_tpm(
        &self,
        record: &VrotRecord,
    ) -> Result<TpmReservation<'_>, ManagerError> {
        let ek = record.identity.ek_rsa_area();
        let mut entries = self.entries();
        let is_same = |other: &Arc<VrotRecord>| other.identity.ek_rsa_area() == ek;
        let mut records = entries.vrots.values().map(|vrot| vrot.record());
        let living = records.find(is_same).map(|other| other.vm);
        if let Some(vm) = living.or_else(|| entries.tpms.get(ek).copied()) {
            return Err(ManagerError::TpmTaken { vm });
        }
        entries.tpms.insert(ek.to_owned(), record.vm);
        Ok(TpmReservation {
            registry: self,
            ek: ek.to_owned(),
        })
    }

    /// Takes up a vRoT that is in the store.
    pub(super) fn insert(&self, record: VrotRecord) -> Arc<Vrot> {
        self.enter(Arc::new(self.vrot(record, watch::Sender::default())))
    }

    /// A vRoT that is not here yet. `certified` is told whether its identity key has a certificate.
    pub(super) fn vrot(&self, record: VrotRecord, certified: watch::Sender<bool>) -> Vrot {
        Vrot::new(record, certified, Arc::clone(&self.events))
    }

    /// Takes up a vRoT, unless it is here already: that one may be running.
    pub(super) fn enter(&self, vrot: Arc<Vrot>) -> Arc<Vrot> {
        let record = vrot.record();
        let mut entries = self.entries();
        entries.vms.insert(record.vm, record.vrot);
        let vrot = Arc::clone(entries.vrots.entry(record.vrot).or_insert(vrot));
        let of_tenant = entries.tenants.entry(record.tenant.clone()).or_default();
        of_tenant.insert(record.vm, Arc::clone(&vrot));
        vrot
    }

    /// Forgets a vRoT that is not in the store any more.
    pub(super) fn remove(&self, vrot: &Vrot) {
        let record = vrot.record();
        let mut entries = self.entries();
        entries.vrots.remove(&record.vrot);
        // The VM may have another one by now.
        if let Entry::Occupied(mut of_tenant) = entries.tenants.entry(record.tenant.clone()) {
            if let btree_map::Entry::Occupied(own) = of_tenant.get_mut().entry(record.vm)
                && own.get().record().vrot == record.vrot
            {
                own.remove();
            }
            if of_tenant.get().is_empty() {
                of_tenant.remove();
            }
        }
        if entries.vms.get(&record.vm) == Some(&record.vrot) {
            entries.vms.remove(&record.vm);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vrot {
    fn new(record: VrotRecord, certified: watch::Sender<bool>, events: Arc<EventLog>) -> Self {
        certified.send_replace(record.identity.vik_certificate.is_some());
        Self {
            gate: tokio::sync::Mutex::new(()),
            recorded: RwLock::new(Recorded::of(record)),
            certified,
            asked_for: AtomicBool::new(false),
            backend: RwLock::new(None),
            adoption: Mutex::new(None),
            restarts: Mutex::new(Vec::new()),
            events,
        }
    }

    /// The gate, for an order. Work that can be done later gives up its use of the backend meanwhile,
    /// if the backend does not answer.
    pub(super) async fn gate_for_an_order(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let backend = self.backend();
        let _waiting = backend.as_deref().map(Backend::order_waits);
        self.gate.lock().await
    }

    /// What the store holds of it. Some five kilobytes, which are shared.
    pub fn record(&self) -> Arc<VrotRecord> {
        Arc::clone(&self.recorded().record)
    }

    /// The same, to be changed and put into the store.
    pub(super) fn record_to_change(&self) -> VrotRecord {
        VrotRecord::clone(&self.recorded().record)
    }

    /// The last second of its vIK certificate's life, if that can be read.
    pub fn vik_not_after(&self) -> Option<Timestamp> {
        self.recorded().vik_not_after
    }

    fn recorded(&self) -> RwLockReadGuard<'_, Recorded> {
        self.recorded.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands with its backend, if it runs.
    pub fn observed(&self) -> Option<Observed> {
        // One that has ended is kept until that is recorded.
        let live = self.backend().filter(|backend| !backend.has_ended());
        live.map(|backend| backend.observed())
    }

    /// Whether it may be started again by itself, of so many times in an hour; counts this one.
    pub(super) fn admits_restart(&self, per_hour: u32, now: Instant) -> bool {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.retain(|at| now.duration_since(*at) < HOUR);
        let admitted = usize::try_from(per_hour).is_ok_and(|limit| restarts.len() < limit);
        if admitted {
            restarts.push(now);
        }
        admitted
    }

    /// Tells when its identity key has a certificate.
    pub(super) fn certified(&self) -> watch::Receiver<bool> {
        self.certified.subscribe()
    }

    /// Somebody wants evidence of it, and is told to ask again when its key has a certificate.
    pub(super) fn ask_for(&self) {
        self.asked_for.store(true, Ordering::Relaxed);
    }

    /// Whether somebody did, or waits for the certificate.
    pub(super) fn is_asked_for(&self) -> bool {
        // One who waits holds a receiver beside that of its backend's role.
        self.asked_for.load(Ordering::Relaxed) || self.certified.receiver_count() > 1
    }

    /// What is still to be issued for it.
    pub fn pending(&self) -> Option<Pending> {
        self.recorded().record.identity.pending()
    }

    pub(super) fn set_record(&self, record: VrotRecord) {
        let is_certified = record.identity.vik_certificate.is_some();
        let recorded = Recorded::of(record);
        let after = Arc::clone(&recorded.record);
        let not_after = recorded.vik_not_after;
        let before = {
            let mut place = (self.recorded.write()).unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *place, recorded).record
        };
        // Readers of the record first: evidence states what it says.
        self.certified.send_replace(is_certified);
        for (kind, details) in happenings::between(&before, &after, not_after) {
            self.tell(kind, details);
        }
    }

    /// Tells that it was made, with all that has become of it since.
    pub(super) fn tell_created(&self) {
        let (record, not_after) = {
            let recorded = self.recorded();
            (Arc::clone(&recorded.record), recorded.vik_not_after)
        };
        for (kind, details) in happenings::of_new(&record, not_after) {
            self.tell(kind, details);
        }
    }

    /// Tells of something that happened to it and is not in its record.
    pub(super) fn tell(&self, kind: EventKind, details: EventDetails) {
        self.events.tell(self.place(), kind, details);
    }

    /// Where what happens to it happens.
    pub(super) fn place(&self) -> Place {
        let record = self.record();
        Place {
            vm: record.vm,
            vrot: record.vrot,
            tenant: record.tenant.clone(),
        }
    }

    /// Why nothing is certain about a backend that an earlier manager left.
    pub(super) fn adoption(&self) -> Option<Adoption> {
        *(self.adoption.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_adoption(&self, adoption: Option<Adoption>) {
        *(self.adoption.lock()).unwrap_or_else(PoisonError::into_inner) = adoption;
    }

    /// What is to be known of a backend that an earlier manager left.
    pub fn note(&self) -> Option<&'static str> {
        self.adoption().map(|adoption| match adoption {
            Adoption::Waiting => "its backend has not answered this manager yet",
            Adoption::OtherVersion => {
                "its backend is of another version: it serves its guest, without evidence, until \
                 the vRoT is stopped"
            }
        })
    }

    /// Nothing is changed while another backend of it may be live.
    pub(super) fn check_settled(&self) -> Result<(), ManagerError> {
        match self.adoption() {
            Some(Adoption::Waiting) => Err(ManagerError::BeingTakenOver {
                vrot: self.record().vrot,
            }),
            Some(Adoption::OtherVersion) | None => Ok(()),
        }
    }

    /// Waits until its present backend is done with; for ever, if this manager has none of it.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let over = self.backend().map(|backend| backend.over());
        async move {
            match over {
                Some(over) => over.await,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn backend(&self) -> Option<Arc<Backend>> {
        self.backend
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_backend(&self, backend: Option<Backend>) {
        *self.backend.write().unwrap_or_else(PoisonError::into_inner) = backend.map(Arc::new);
    }
}

impl Recorded {
    fn of(record: VrotRecord) -> Self {
        let certificate = record.identity.vik_certificate.as_ref();
        let validity = certificate.and_then(|der| Validity::of_certificate(der).ok());
        Self {
            record: Arc::new(record),
            vik_not_after: validity.map(|validity| Timestamp::new(validity.not_after().as_secs())),
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.registry.entries().reserved.remove(&self.vm);
    }
}

impl Drop for TpmReservation<'_> {
    fn drop(&mut self) {
        self.registry.entries().tpms.remove(&self.ek);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vrot::StoredVrot;

    #[test]
    fn a_vm_is_claimed_once() -> anyhow::Result<()> {
        let registry = Registry::default();
        let vm = VmId::random();
        let reservation = registry.reserve(vm)?;
        assert!(matches!(
            registry.reserve(vm),
            Err(ManagerError::VmTaken { .. })
        ));
        drop(reservation);
        registry.reserve(vm)?;
        Ok(())
    }

    #[test]
    fn of_a_vm_whose_vrot_is_being_made_nobody_is_told_that_there_is_none() -> anyhow::Result<()> {
        let registry = Registry::default();
        let vm = VmId::random();
        let reservation = registry.reserve(vm)?;
        let key: VrotKey = vm.to_string().parse()?;
        assert!(matches!(
            registry.find(key),
            Err(ManagerError::BeingMade { .. })
        ));
        drop(reservation);
        assert!(matches!(
            registry.find(key),
            Err(ManagerError::UnknownVrot { .. })
        ));
        Ok(())
    }

    #[test]
    fn a_tenant_finds_its_own_vrots_and_no_others() -> anyhow::Result<()> {
        let registry = Registry::default();
        let id = "00000000-0000-4000-8000-000000000001".parse()?;
        let stored = hex::decode(include_str!("../vrot/vrot_record_v1.hex").trim())?;
        let StoredVrot::Living(record) = StoredVrot::from_bytes(id, &stored)? else {
            anyhow::bail!("a tombstone");
        };
        let (own, other): (Tenant, Tenant) = (record.tenant.clone(), "other".parse()?);
        let (vm, vrot) = (record.vm, record.vrot);
        let living = registry.insert(*record);
        assert_eq!(registry.of_tenant(&own).len(), 1);
        assert!(registry.of_tenants_vm(&own, vm).is_some());
        assert!(registry.of_tenant(&other).is_empty());
        assert!(registry.of_tenants_vm(&other, vm).is_none());
        // A vRoT's number leads to no VM.
        let number = VmId::from_uuid(*vrot.as_uuid());
        assert!(registry.of_tenants_vm(&own, number).is_none());
        registry.remove(&living);
        assert!(registry.of_tenants_vm(&own, vm).is_none());
        assert!(registry.entries().tenants.is_empty());
        Ok(())
    }

    #[test]
    fn a_tpm_is_claimed_once_and_not_while_it_is_a_vrot() -> anyhow::Result<()> {
        let registry = Registry::default();
        let id = "00000000-0000-4000-8000-000000000001".parse()?;
        let stored = hex::decode(include_str!("../vrot/vrot_record_v1.hex").trim())?;
        let StoredVrot::Living(record) = StoredVrot::from_bytes(id, &stored)? else {
            anyhow::bail!("a tombstone");
        };
        let is_taken = || {
            let claimed = registry.reserve_tpm(&record);
            matches!(claimed, Err(ManagerError::TpmTaken { .. }))
        };
        let reservation = registry.reserve_tpm(&record)?;
        assert!(is_taken());
        drop(reservation);
        assert!(!is_taken());
        let vrot = registry.insert(*record.clone());
        assert!(is_taken());
        registry.remove(&vrot);
        assert!(!is_taken());
        Ok(())
    }

    #[test]
    fn no_vm_takes_the_number_of_a_vrot() -> anyhow::Result<()> {
        let registry = Registry::default();
        let id = "00000000-0000-4000-8000-000000000001".parse()?;
        let stored = hex::decode(include_str!("../vrot/vrot_record_v1.hex").trim())?;
        let StoredVrot::Living(record) = StoredVrot::from_bytes(id, &stored)? else {
            anyhow::bail!("a tombstone");
        };
        let victim = registry.insert(*record);
        let number = VmId::from_uuid(*victim.record().vrot.as_uuid());
        assert!(matches!(
            registry.reserve(number),
            Err(ManagerError::VmTaken { .. })
        ));
        Ok(())
    }
}
