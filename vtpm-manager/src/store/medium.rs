//! What the store's bytes lie on, and which of its failures the store can get over.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, StorageBackend};

/// Something that can be opened as a database, again after it failed.
pub(super) trait Medium: Send + Sync + 'static {
    /// Opens it; an empty one becomes an empty database.
    fn open(&self) -> Result<Box<dyn StorageBackend>, redb::Error>;

    /// What errors call it.
    fn name(&self) -> String;
}

/// A file that only its owner can read.
#[derive(Debug)]
pub(super) struct StoreFile(pub(super) PathBuf);

/// Whether a medium failed to confirm that a write is durable. It may not be, although it can
/// be read: nothing that was read afterwards proves anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt {
    raised: Arc<AtomicBool>,
    /// How often the medium was asked.
    syncs: Arc<AtomicU64>,
}

/// A backend that remembers in [`Doubt`] when a sync failed, and counts them all.
#[derive(Debug)]
struct Watched {
    backend: Box<dyn StorageBackend>,
    doubt: Doubt,
}

impl Medium for StoreFile {
    fn open(&self) -> Result<Box<dyn StorageBackend>, redb::Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.0)?;
        Ok(Box::new(FileBackend::new(file)?))
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Doubt {
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
    }

    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

/// Opens the database on a medium. All of it is checked: whoever can write to the disk could
/// otherwise bring the manager down with a page that no database has.
pub(super) fn open_database(medium: &dyn Medium, doubt: &Doubt) -> Result<Database, redb::Error> {
    let backend = Watched {
        backend: medium.open()?,
        doubt: doubt.clone(),
    };
    Ok(Builder::new()
        .set_check_integrity_on_open(true)
        .create_with_backend(backend)?)
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.doubt.syncs.fetch_add(1, Ordering::Relaxed);
        self.backend.sync_data().inspect_err(|_| self.doubt.raise())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
