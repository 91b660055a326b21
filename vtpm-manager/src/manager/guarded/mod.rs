//! What must be durable: the store behind its gate, the audit log, and deletions that are not
//! finished.
//!
//! What happens is a line in the audit log before it does. Where the store does not take the change
//! after all, another line says so.

mod audit_comparison;
mod deletions;
mod opening;
mod recovery;
mod store_state;
mod vouched_log;

use std::collections::BTreeMap;
use std::sync::Arc;

use api_types::WithCauses;
use cert_chain::VrotId;
use guarded_state::disk::{Batch, Part};
use guarded_state::journal::Journal;
use guarded_state::ledger::{AnchorPolicy, MarkedLog};
use tokio::sync::watch;

use super::blocking::blocking;
use super::error::ManagerError;
use super::folders::Folders;
use crate::audit::{Actor, AuditLog, Event};
use crate::host::Host;
use crate::vrot::{RecordError, StoredVrot, Tombstone, VrotRecord};

use deletions::Deletions;
use store_state::StoreGate;

pub use store_state::{StoreState, Vouched};

pub(super) use store_state::Turn;

/// Owns the store, the audit log, and what must be in both.
#[derive(Debug)]
pub struct Guarded {
    journal: Journal,
    audit: Arc<AuditLog>,
    gate: StoreGate,
    deletions: Deletions,
    host: Arc<Host>,
    policy: AnchorPolicy,
    folders: Folders,
}

/// What is in the store.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) living: BTreeMap<VrotId, VrotRecord>,
    pub(super) tombstones: Vec<Tombstone>,
}

impl Guarded {
    pub(super) fn new(
        journal: Journal,
        audit: Arc<AuditLog>,
        host: Arc<Host>,
        policy: AnchorPolicy,
        folders: Folders,
    ) -> Self {
        journal.mark(Arc::clone(&audit) as Arc<dyn MarkedLog>);
        Self {
            journal,
            audit,
            gate: StoreGate::new(),
            deletions: Deletions::default(),
            host,
            policy,
            folders,
        }
    }

    /// The store's writer.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The audit log.
    pub fn audit(&self) -> &Arc<AuditLog> {
        &self.audit
    }

    /// Whether the store may be used.
    pub fn store_state(&self) -> StoreState {
        self.gate.state()
    }

    /// The same, and each change of it.
    pub fn watch_store_state(&self) -> watch::Receiver<StoreState> {
        self.gate.watch()
    }

    /// Whether the store is open.
    pub fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// What the ledger says, if the physical TPM vouches for the store.
    pub(super) fn vouched(&self) -> Option<Vouched> {
        self.gate.vouched()
    }

    /// Writes a line into the audit log.
    pub async fn record(&self, event: Event) -> Result<(), ManagerError> {
        self.record_all(vec![event]).await
    }

    /// Writes lines into the audit log, in one go.
    pub(super) async fn record_all(&self, events: Vec<Event>) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        let actor = Actor::current();
        Ok(blocking(move || audit.append(actor, &events)).await??)
    }

    /// Writes lines of what has happened anyway: a disk that does not take them gets them with
    /// the next line, and the manager serves meanwhile.
    pub async fn record_or_keep(&self, events: Vec<Event>) {
        let audit = Arc::clone(&self.audit);
        let recorded = blocking(move || audit.append_or_keep(&events)).await;
        if let Err(error) = recorded.and_then(|appended| Ok(appended?)) {
            tracing::error!(error = %WithCauses(&error), "the audit log waits for the disk");
        }
    }

    /// Writes the lines of a change and makes it durable. Where the store does not take it, another
    /// line says that the vRoT is as before.
    pub(super) async fn change(
        &self,
        before: &VrotRecord,
        events: Vec<Event>,
        change: Batch,
    ) -> Result<(), ManagerError> {
        self.record_all(events).await?;
        let committed = self.commit(change).await;
        if committed.is_err() {
            self.record_as_it_was(before.vrot, Some(before)).await;
        }
        committed
    }

    /// Makes a change durable of which the audit log tells already, or need not tell.
    pub(super) async fn commit(&self, change: Batch) -> Result<(), ManagerError> {
        Ok(self.journal.commit(change).await?)
    }

    /// What was committed last.
    pub(super) async fn read(
        &self,
        vrot: VrotId,
        part: Part,
    ) -> Result<Option<Vec<u8>>, ManagerError> {
        Ok(self.journal.read(vrot, part).await?)
    }

    /// Every vRoT that is in the store.
    pub(super) async fn stored(&self) -> Result<Stored, ManagerError> {
        let mut stored = Stored::default();
        for id in self.journal.vrots().await? {
            let record = self.journal.read(id, Part::Record).await?;
            let record = record.ok_or(RecordError::Missing { vrot: id })?;
            match StoredVrot::from_bytes(id, &record)? {
                StoredVrot::Living(record) => drop(stored.living.insert(id, *record)),
                StoredVrot::Deleted(tombstone) => stored.tombstones.push(tombstone),
            }
        }
        Ok(stored)
    }
}
