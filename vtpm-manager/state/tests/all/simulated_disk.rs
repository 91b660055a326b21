//! A disk in memory that fails as disks do: it forgets what was not synced when the power goes,
//! fills up, turns read-only, gets slow, and does not confirm a write.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use guarded_state::disk::Medium;
use redb::StorageBackend;

/// A disk. Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Platter>>);

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// No byte beyond those that are there.
    Full,
    ReadOnly,
    /// Each sync takes this long.
    Slow(Duration),
    /// The next sync fails. As kernels do, this one tells of it once, does not try to write the
    /// same bytes again, and shows them all the same: they are lost with the power, unless they
    /// are written anew.
    Unconfirmed,
    /// Every sync fails like that.
    NeverConfirms,
}

/// Bytes that go or stay together when the power goes.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Platter {
    /// What a restart finds.
    durable: Vec<u8>,
    /// What can be read: the durable bytes with everything that was written since.
    current: Vec<u8>,
    unsynced: Vec<Change>,
    fault: Fault,
    /// Changes and syncs so far.
    operations: u64,
    syncs: u64,
    /// The operation at which the power goes.
    power_until: Option<u64>,
    /// How often the power was switched on: handles from before are dead.
    powered: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Length(u64),
    Write { offset: u64, data: Vec<u8> },
}

/// The disk as a process has it open.
#[derive(Debug)]
struct Handle {
    disk: SimulatedDisk,
    powered: u64,
}

impl SimulatedDisk {
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.platter().fault = fault;
    }

    /// Lets the power go at the given operation, counted from the first.
    pub(crate) fn lose_power_at(&self, operation: u64) {
        self.platter().power_until = Some(operation);
    }

    /// The power comes back. Each sector that was not synced is there or not, as `seed` has it.
    pub(crate) fn restart(&self, seed: u64) {
        let mut platter = self.platter();
        let mut image = std::mem::take(&mut platter.durable);
        let mut sector = 0u64;
        for change in std::mem::take(&mut platter.unsynced) {
            for part in change.sectors() {
                sector += 1;
                if is_kept(seed, sector) {
                    part.apply(&mut image);
                }
            }
        }
        platter.current.clone_from(&image);
        platter.durable = image;
        platter.power_until = None;
        platter.powered += 1;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.platter().operations
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.platter().syncs
    }

    /// All bytes, as somebody else who has the disk sees and changes them.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.platter().current.clone()
    }

    /// A disk with these bytes.
    pub(crate) fn holding(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            durable: image.clone(),
            current: image,
            ..Platter::default()
        })))
    }

    /// The disk as a process opens it.
    pub(crate) fn handle(&self) -> impl StorageBackend + use<> {
        Handle {
            disk: self.clone(),
            powered: self.platter().powered,
        }
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Medium for SimulatedDisk {
    fn open(&self) -> Result<Box<dyn StorageBackend>, redb::Error> {
        Ok(Box::new(self.handle()))
    }

    fn name(&self) -> String {
        "a simulated disk".to_owned()
    }
}

impl Handle {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.platter();
        let is_off = (platter.power_until).is_some_and(|until| platter.operations >= until);
        if is_off || platter.powered != self.powered {
            return Err(io::Error::other("the power is off"));
        }
        Ok(platter)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut platter = self.platter()?;
        platter.operations += 1;
        match platter.fault {
            Fault::ReadOnly => return Err(ErrorKind::ReadOnlyFilesystem.into()),
            Fault::Full if change.end() > platter.current.len() as u64 => {
                return Err(ErrorKind::StorageFull.into());
            }
            _ => {}
        }
        change.clone().apply(&mut platter.current);
        platter.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| platter.current.get(start..start.checked_add(out.len())?))
            .ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let delay = match self.platter()?.fault {
            Fault::Slow(delay) => delay,
            _ => Duration::ZERO,
        };
        thread::sleep(delay);
        let mut platter = self.platter()?;
        platter.operations += 1;
        if matches!(platter.fault, Fault::Unconfirmed | Fault::NeverConfirms) {
            if platter.fault == Fault::Unconfirmed {
                platter.fault = Fault::None;
            }
            platter.unsynced.clear();
            return Err(io::Error::other("the disk does not answer"));
        }
        platter.syncs += 1;
        // Not what can be read: of that, some may have been lost in an earlier sync.
        let written = std::mem::take(&mut platter.unsynced);
        for change in written {
            change.apply(&mut platter.durable);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let data = data.to_vec();
        self.change(Change::Write { offset, data })
    }
}

impl Change {
    fn end(&self) -> u64 {
        match self {
            Self::Length(length) => *length,
            Self::Write { offset, data } => offset.saturating_add(data.len() as u64),
        }
    }

    fn apply(self, image: &mut Vec<u8>) {
        let end = usize::try_from(self.end()).unwrap_or(usize::MAX);
        match self {
            Self::Length(_) => image.resize(end, 0),
            Self::Write { data, .. } => {
                // A write whose growth of the file was lost grows it.
                if image.len() < end {
                    image.resize(end, 0);
                }
                let start = end - data.len();
                if let Some(place) = image.get_mut(start..end) {
                    place.copy_from_slice(&data);
                }
            }
        }
    }

    fn sectors(self) -> Vec<Self> {
        match self {
            Self::Length(_) => vec![self],
            Self::Write { offset, data } => (offset..)
                .step_by(SECTOR)
                .zip(data.chunks(SECTOR))
                .map(|(offset, part)| Self::Write {
                    offset,
                    data: part.to_vec(),
                })
                .collect(),
        }
    }
}

/// As good as random, and the same again for the same seed.
fn is_kept(seed: u64, sector: u64) -> bool {
    let mut hasher = DefaultHasher::new();
    (seed, sector).hash(&mut hasher);
    hasher.finish().is_multiple_of(2)
}
