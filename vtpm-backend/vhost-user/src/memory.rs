//! The guest's memory, as its VMM shares it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{FsWord, fstat, fstatfs};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap,
};

/// `<linux/magic.h>`
const TMPFS_MAGIC: FsWord = 0x0102_1994;
const HUGETLBFS_MAGIC: FsWord = 0x9584_58f6;

/// All memory of the guest. Whoever has a copy sees a change at once.
pub(crate) type SharedMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Why a part of memory is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum MemoryError {
    /// Access to any other file could wait for whoever serves that.
    #[error("a region of guest memory is neither a memfd nor a file on tmpfs or hugetlbfs")]
    NoMemory,
    #[error("a region of guest memory has a size that is zero, or goes beyond the address space")]
    NoRange,
    #[error("a region of guest memory goes beyond the end of its file")]
    BeyondEnd,
    #[error("a region of guest memory cannot be mapped: {0}")]
    NotMapped(vhost::vhost_user::Error),
    #[error("the regions of guest memory do not fit together: {0}")]
    Layout(#[from] GuestRegionCollectionError),
    #[error("the kernel does not say what a region of guest memory is")]
    Unknown(#[from] rustix::io::Errno),
    #[error("the lock of guest memory is poisoned")]
    Poisoned,
}

impl From<MemoryError> for vhost::vhost_user::Error {
    fn from(error: MemoryError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

/// Where the VMM has a region in its own address space, by which it names the parts of a ring.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    vmm: u64,
    size: u64,
    guest: u64,
}

/// All memory that the VMM shares at this time.
#[derive(Debug)]
pub(crate) struct Memory {
    shared: SharedMemory,
    mappings: Vec<Mapping>,
}

impl Memory {
    /// None yet. What comes is in `shared`, from which rings and chains are read.
    pub(crate) fn new(shared: SharedMemory) -> Self {
        Self {
            shared,
            mappings: Vec::new(),
        }
    }

    /// Takes these regions in place of all that were there.
    pub(crate) fn replace(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), MemoryError> {
        let mut mapped = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            mapped.push(Arc::new(map(region, file)?));
        }
        mapped.sort_by_key(|region| region.start_addr());
        self.publish(GuestMemoryMmap::from_arc_regions(mapped)?)?;
        self.mappings = regions.iter().map(Mapping::of).collect();
        Ok(())
    }

    /// Takes one more.
    pub(crate) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), MemoryError> {
        let mapped = Arc::new(map(region, file)?);
        let all = self.shared.memory().insert_region(mapped)?;
        self.publish(all)?;
        self.mappings.push(Mapping::of(region));
        Ok(())
    }

    /// Gives one back.
    pub(crate) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), MemoryError> {
        let (start, size) = (region.guest_phys_addr, region.memory_size);
        let is_last = self.mappings.len() == 1;
        let rest = match is_last
            && self
                .mappings
                .iter()
                .all(|m| m.guest == start && m.size == size)
        {
            // The library has no collection without a region, other than a new one.
            true => GuestMemoryMmap::new(),
            false => {
                let memory = self.shared.memory();
                memory.remove_region(GuestAddress(start), size)?.0
            }
        };
        self.publish(rest)?;
        self.mappings.retain(|mapping| mapping.guest != start);
        Ok(())
    }

    /// How many there are.
    pub(crate) fn regions(&self) -> u64 {
        u64::try_from(self.mappings.len()).unwrap_or(u64::MAX)
    }

    /// The guest's address of what the VMM has at this address.
    pub(crate) fn guest_address(&self, vmm: u64) -> Option<u64> {
        self.mappings.iter().find_map(|mapping| {
            let offset = vmm.checked_sub(mapping.vmm)?;
            (offset < mapping.size).then(|| mapping.guest.checked_add(offset))?
        })
    }

    fn publish(&self, memory: GuestMemoryMmap) -> Result<(), MemoryError> {
        let lock = self.shared.lock().map_err(|_| MemoryError::Poisoned)?;
        lock.replace(memory);
        Ok(())
    }
}

impl Mapping {
    fn of(region: &VhostUserMemoryRegion) -> Self {
        Self {
            vmm: region.user_addr,
            size: region.memory_size,
            guest: region.guest_phys_addr,
        }
    }
}

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap, MemoryError> {
    let (start, size) = (region.guest_phys_addr, region.memory_size);
    if size == 0 || start.checked_add(size).is_none() {
        return Err(MemoryError::NoRange);
    }
    let file_size = fstat(&file)?.st_size;
    match fstatfs(&file)?.f_type {
        TMPFS_MAGIC | HUGETLBFS_MAGIC => {}
        _ => return Err(MemoryError::NoMemory),
    }
    // Beyond the end of a file there is nothing to be read, and whoever tries is ended.
    let end = region.mmap_offset.checked_add(size);
    let end = end.and_then(|end| i64::try_from(end).ok());
    if end.is_none_or(|end| end > file_size) {
        return Err(MemoryError::BeyondEnd);
    }
    let mapped = region.mmap_region(file).map_err(MemoryError::NotMapped)?;
    GuestRegionMmap::new(mapped, GuestAddress(start)).ok_or(MemoryError::NoRange)
}
