//! The store that comes with the manager: one redb file.
//!
//! Tables:
//!
//! | Table | Key | Value |
//! |---|---|---|
//! | `meta` | `"format"` | version of this layout |
//! | `blocks` | 16 bytes of vRoT id, 1 byte of [`Part`], 2 bytes of number | a block of its contents |
//! | `chain` | number of a batch | chain record of [`crate::ledger`] |
//! | `leaves` | 16 bytes of vRoT id | leaf of [`crate::ledger`] |
//!
//! Contents are cut into [blocks], and of contents that change, only the blocks
//! that differ are written. A store of version 1, which had them in one piece in a table `vrots`,
//! is brought to this form when it is opened.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cert_chain::VrotId;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};
use uuid::Uuid;

use super::batch::{Batch, Part};
use super::blocks;
use super::error::StoreError;
use super::ledger_records::{LedgerWrites, StoredLedger};
use super::medium::{Medium, StoreFile, UnconfirmedWrites, open_database};
use super::store::Store;

/// A store in one file. Only one process can have it open.
///
/// After a failure of the disk the file is opened again with the next use, so that a disk that
/// was full, or came back, needs no restart. After a write that was not confirmed, all of the
/// file is written anew and confirmed first.
pub struct EmbeddedStore {
    medium: Box<dyn Medium>,
    unconfirmed: UnconfirmedWrites,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// Open, unless the disk failed.
    database: Option<Database>,
    /// A batch whose commit failed, and of which it could not be read how far it got.
    unsettled: Option<LedgerWrites>,
    /// That batch was found after its commit had been reported as failed.
    is_overtaken: bool,
    /// Whether it ever was open: then a failure is the disk's.
    was_open: bool,
}

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CHAIN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("chain");
const LEAVES: TableDefinition<'_, [u8; ID_LENGTH], &[u8]> = TableDefinition::new("leaves");
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 2;
const ID_LENGTH: usize = 16;

impl EmbeddedStore {
    /// Opens a store, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::on(StoreFile(path.to_owned()))
    }

    /// Opens a store that lies on something else. One whose disk is full or cannot be written is
    /// opened as soon as that has changed.
    pub fn on(medium: impl Medium) -> Result<Self, StoreError> {
        let store = Self {
            medium: Box::new(medium),
            unconfirmed: UnconfirmedWrites::default(),
            state: RwLock::default(),
        };
        match store.with(|_| Ok(())) {
            Err(error @ (StoreError::Full(_) | StoreError::ReadOnly(_))) => {
                tracing::error!(%error, "the store is not open yet");
            }
            other => other?,
        }
        Ok(store)
    }

    /// Works with the open database. One that fails is closed.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let state = self.shared();
        if state.is_overtaken {
            return Err(StoreError::Overtaken);
        }
        let result = if let Some(database) = &state.database {
            let result = work(database);
            drop(state);
            result
        } else {
            drop(state);
            let mut state = self.exclusive();
            if state.database.is_none() {
                let database = self.open_again(state.was_open)?;
                if let Some(unsettled) = &state.unsettled
                    && holds(&database, unsettled)?
                {
                    state.is_overtaken = true;
                    return Err(StoreError::Overtaken);
                }
                state.unsettled = None;
                state.was_open = true;
                state.database = Some(database);
            }
            match &state.database {
                Some(database) => work(database),
                None => Err(StoreError::Closed),
            }
        };
        if result.is_err() {
            self.exclusive().database = None;
        }
        result
    }

    fn open_again(&self, was_open: bool) -> Result<Database, StoreError> {
        let failed = |source| {
            let source = match write(source) {
                StoreError::Write(source) => source,
                other => return other,
            };
            if was_open && self.unconfirmed.is_possible() {
                return StoreError::Unconfirmed;
            }
            StoreError::Open {
                path: self.medium.name(),
                source,
            }
        };
        let database = open_database(self.medium.as_ref(), &self.unconfirmed).map_err(failed)?;
        check_format(&database).map_err(|error| match error {
            StoreError::Read(source) | StoreError::Write(source) => StoreError::Open {
                path: self.medium.name(),
                source,
            },
            other => other,
        })?;
        Ok(database)
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for EmbeddedStore {
    fn syncs(&self) -> u64 {
        self.unconfirmed.syncs()
    }

    fn written(&self) -> u64 {
        self.unconfirmed.written()
    }

    fn vrots(&self) -> Result<Vec<VrotId>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(read)?;
            let table = transaction.open_table(blocks::TABLE).map_err(read)?;
            blocks::vrots(&table).map_err(read)
        })
    }

    fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(read)?;
            let table = transaction.open_table(blocks::TABLE).map_err(read)?;
            blocks::read(&table, vrot, part).map_err(read)
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let Err(error) = self.with(|database| write_batch(database, batch)) else {
            return Ok(());
        };
        let Some(writes) = batch.ledger() else {
            return Err(error);
        };
        // It may have failed when all of it was written.
        match self.with(|database| holds(database, writes)) {
            Ok(true) => self.with(sync),
            Ok(false) => Err(error),
            Err(_) => {
                self.exclusive()
                    .unsettled
                    .get_or_insert_with(|| writes.clone());
                Err(error)
            }
        }
    }

    fn ledger(&self) -> Result<StoredLedger, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(read)?;
            let mut ledger = StoredLedger::default();
            let chain = transaction.open_table(CHAIN).map_err(read)?;
            for entry in chain.iter().map_err(read)? {
                let (_, record) = entry.map_err(read)?;
                ledger.chain.push(record.value().to_vec());
            }
            let leaves = transaction.open_table(LEAVES).map_err(read)?;
            for entry in leaves.iter().map_err(read)? {
                let (vrot, leaf) = entry.map_err(read)?;
                let vrot = VrotId::from_uuid(Uuid::from_bytes(vrot.value()));
                ledger.leaves.insert(vrot, leaf.value().to_vec());
            }
            Ok(ledger)
        })
    }
}

fn check_format(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_read().map_err(read)?;
    match transaction.open_table(META) {
        Ok(table) => {
            let format = table.get(FORMAT).map_err(read)?;
            match format.map(|format| format.value()) {
                Some(FORMAT_VERSION) => return Ok(()),
                Some(blocks::WITHOUT) => {}
                _ => return Err(StoreError::Foreign { what: "a format" }),
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(read(error)),
    }
    drop(transaction);
    let transaction = begin(database)?;
    {
        let mut table = transaction.open_table(META).map_err(write)?;
        table.insert(FORMAT, FORMAT_VERSION).map_err(write)?;
        blocks::make(&transaction).map_err(write)?;
        transaction.open_table(CHAIN).map_err(write)?;
        transaction.open_table(LEAVES).map_err(write)?;
    }
    transaction.commit().map_err(write)
}

/// A transaction that is durable when it is committed.
fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write().map_err(write)?;
    // The default, but nothing here works without it.
    transaction
        .set_durability(Durability::Immediate)
        .map_err(write)?;
    Ok(transaction)
}

/// Makes what is in the file durable once more.
fn sync(database: &Database) -> Result<(), StoreError> {
    begin(database)?.commit().map_err(write)
}

fn write_batch(database: &Database, batch: &Batch) -> Result<(), StoreError> {
    let transaction = begin(database)?;
    {
        let mut table = transaction.open_table(blocks::TABLE).map_err(write)?;
        for (vrot, part, contents) in batch.changes() {
            match contents {
                Some(contents) => blocks::write(&mut table, vrot, part, contents),
                None => blocks::remove(&mut table, vrot, part),
            }
            .map_err(write)?;
        }
    }
    if let Some(writes) = batch.ledger() {
        write_ledger(&transaction, writes)?;
    }
    transaction.commit().map_err(write)
}

/// Whether a batch is in the store.
fn holds(database: &Database, writes: &LedgerWrites) -> Result<bool, StoreError> {
    let transaction = database.begin_read().map_err(read)?;
    let chain = transaction.open_table(CHAIN).map_err(read)?;
    let record = chain.get(writes.epoch.number()).map_err(read)?;
    Ok(record.is_some_and(|record| record.value() == writes.record))
}

fn write_ledger(transaction: &WriteTransaction, writes: &LedgerWrites) -> Result<(), StoreError> {
    let mut chain = transaction.open_table(CHAIN).map_err(write)?;
    chain
        .retain_in(..writes.prune_below.number(), |_, _| false)
        .map_err(write)?;
    chain
        .insert(writes.epoch.number(), writes.record.as_slice())
        .map_err(write)?;
    let mut leaves = transaction.open_table(LEAVES).map_err(write)?;
    for (vrot, leaf) in &writes.leaves {
        match leaf {
            Some(leaf) => {
                leaves
                    .insert(*vrot.as_bytes(), leaf.as_slice())
                    .map_err(write)?;
            }
            None => {
                leaves.remove(*vrot.as_bytes()).map_err(write)?;
            }
        }
    }
    Ok(())
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

fn read(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Read(Arc::new(error.into()))
}

fn write(error: impl Into<redb::Error>) -> StoreError {
    let error = Arc::new(error.into());
    match &*error {
        redb::Error::Io(source) => match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(error),
            ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(error),
            _ => StoreError::Write(error),
        },
        _ => StoreError::Write(error),
    }
}

#[cfg(test)]
mod tests {
    use cert_chain::Generation;

    use super::*;

    #[test]
    fn what_was_committed_is_there_after_opening_again() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store");
        let (kept, deleted) = (VrotId::random(), VrotId::random());
        let store = EmbeddedStore::open(&path)?;
        store.commit(
            &Batch::default()
                .put_record(kept, Generation::new(1), b"record".to_vec())
                .put(kept, Part::Permanent, b"state".to_vec())
                .put_record(deleted, Generation::new(1), b"other".to_vec()),
        )?;
        let syncs = store.syncs();
        store.commit(&Batch::default().delete(deleted))?;
        assert!(store.syncs() > syncs);
        drop(store);

        let store = EmbeddedStore::open(&path)?;
        assert_eq!(store.vrots()?, [kept]);
        assert_eq!(
            store.read(kept, Part::Permanent)?.as_deref(),
            Some(b"state".as_slice())
        );
        assert_eq!(store.read(kept, Part::Volatile)?, None);
        assert_eq!(store.read(deleted, Part::Record)?, None);
        Ok(())
    }

    #[test]
    fn a_store_is_open_once_only() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store");
        let _store = EmbeddedStore::open(&path)?;
        assert!(matches!(
            EmbeddedStore::open(&path),
            Err(StoreError::Open { .. })
        ));
        Ok(())
    }

    #[test]
    fn a_file_that_is_no_store_is_left_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store");
        std::fs::write(&path, b"something else entirely")?;
        assert!(EmbeddedStore::open(&path).is_err());
        assert_eq!(std::fs::read(&path)?, b"something else entirely");
        Ok(())
    }

    #[test]
    fn only_the_owner_can_read_the_file() -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store");
        let _store = EmbeddedStore::open(&path)?;
        assert_eq!(
            std::fs::metadata(&path)?.permissions().mode() & 0o777,
            0o600
        );
        Ok(())
    }
}
