//! What the store's bytes lie on, and which of its failures the store can get over.

use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, StorageBackend};

/// Something that can be opened as a database, again after it failed.
pub trait Medium: Send + Sync + 'static {
    /// Opens it exclusively; an empty one becomes an empty database.
    fn open(&self) -> Result<Box<dyn StorageBackend>, redb::Error>;

    /// What errors call it.
    fn name(&self) -> String;
}

/// A file that only its owner can read.
#[derive(Debug)]
pub(super) struct StoreFile(pub(super) PathBuf);

/// Whether a medium may hold writes that it did not confirm. They can be read, but may be lost
/// with the power, and nothing that is read afterwards proves that they are durable. A process
/// that opens a file does not know what an earlier one was told, so every store begins with this
/// possible.
#[derive(Clone, Debug)]
pub(super) struct UnconfirmedWrites {
    possible: Arc<AtomicBool>,
    /// How often the medium was asked.
    syncs: Arc<AtomicU64>,
    /// Bytes that were written to it.
    written: Arc<AtomicU64>,
}

/// A backend that notes in [`UnconfirmedWrites`] when a sync failed, and counts all of them.
#[derive(Debug)]
struct CountingBackend {
    backend: Box<dyn StorageBackend>,
    unconfirmed: UnconfirmedWrites,
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
        // Before anything is written. The database locks the same open file once more.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(redb::Error::DatabaseAlreadyOpen),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(Box::new(FileBackend::new(file)?))
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Default for UnconfirmedWrites {
    fn default() -> Self {
        Self {
            possible: Arc::new(AtomicBool::new(true)),
            syncs: Arc::default(),
            written: Arc::default(),
        }
    }
}

impl UnconfirmedWrites {
    fn rule_out(&self) {
        self.possible.store(false, Ordering::Release);
    }

    pub(super) fn is_possible(&self) -> bool {
        self.possible.load(Ordering::Acquire)
    }

    pub(super) fn note(&self) {
        self.possible.store(true, Ordering::Release);
    }

    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// Opens the database on a medium. All of it is checked first: a page that no database has,
/// put there by another writer of the disk, could otherwise end the manager. Where a sync may have
/// failed, all of it is written anew first.
pub(super) fn open_database(
    medium: &dyn Medium,
    unconfirmed: &UnconfirmedWrites,
) -> Result<Database, redb::Error> {
    let backend = CountingBackend {
        backend: medium.open()?,
        unconfirmed: unconfirmed.clone(),
    };
    if unconfirmed.is_possible() {
        write_anew(&backend)?;
        unconfirmed.rule_out();
    }
    Ok(Builder::new()
        .set_check_integrity_on_open(true)
        .create_with_backend(backend)?)
}

/// Makes what can be read what is on the disk.
///
/// After a failed `fsync`, Linux calls the pages that it could not write clean and goes on
/// showing them; no later `fsync` writes them or tells of them (Rebello et al., "Can Applications
/// Recover from fsync Failures?", USENIX ATC 2020, section 3; Corbet, "PostgreSQL's fsync()
/// surprise", LWN 752063). Opening the file again, also in another process, reads those pages,
/// until memory gets short or the power goes. A page that is written again is dirty again, so the
/// sync at the end covers everything that was read here. What the kernel had dropped already
/// reads as it is on the disk. The mixture is what a power cut in the middle of the commit would
/// have left; the check that follows tells.
///
/// In place, since the bytes are those that are there: a copy under another name would need room
/// on a disk that may be full, and would be another file than the one that is locked.
fn write_anew(backend: &CountingBackend) -> io::Result<()> {
    let end = backend.len()?;
    let mut offset = 0;
    let mut bytes = vec![0; ANEW];
    while offset < end {
        let length = usize::try_from(end - offset).map_or(ANEW, |rest| rest.min(ANEW));
        let part = bytes.get_mut(..length).unwrap_or_default();
        backend.read(offset, part)?;
        match backend.write(offset, part) {
            // A hole: there is nothing on the disk that could be another.
            Err(error) if is_no_room(&error) => write_around_holes(backend, offset, part)?,
            other => other?,
        }
        offset += length as u64;
    }
    backend.sync_data()
}

fn write_around_holes(backend: &CountingBackend, offset: u64, bytes: &[u8]) -> io::Result<()> {
    for (offset, block) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
        match backend.write(offset, block) {
            Err(error) if is_no_room(&error) && block.iter().all(|byte| *byte == 0) => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Written at a time.
const ANEW: usize = 64 * 1024;
/// What a filesystem allocates at least.
const BLOCK: usize = 4096;

impl StorageBackend for CountingBackend {
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
        self.unconfirmed.syncs.fetch_add(1, Ordering::Relaxed);
        self.backend
            .sync_data()
            .inspect_err(|_| self.unconfirmed.note())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.unconfirmed
            .written
            .fetch_add(length, Ordering::Relaxed);
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
