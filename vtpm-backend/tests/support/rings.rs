//! A VMM and its guest's driver by hand, byte by byte: for what no driver does.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tpm_wire::MAX_SIZE;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::Commands;

/// `VIRTQ_DESC_F_NEXT`
pub(crate) const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`
pub(crate) const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`
pub(crate) const INDIRECT: u16 = 4;
/// Where tests have their buffers.
pub(crate) const BUFFER: u64 = 0x1_0000;
/// As much memory as the guest has.
pub(crate) const MEMORY: u64 = 0x10_0000;
/// How many descriptors there are.
pub(crate) const QUEUE_SIZE: u16 = 16;
/// Where the queue's three parts are.
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Where the VMM says that it has the guest's memory.
pub(crate) const VMM_ADDRESS: u64 = 0x7f00_0000_0000;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest's memory, with a queue in it.
pub(crate) struct Guest {
    pub(crate) memory: File,
    offered: u16,
}

/// A VMM that is connected for a guest.
pub(crate) struct Vmm {
    pub(crate) frontend: Frontend,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
}

/// A descriptor: address, length, flags, the next one's number.
pub(crate) type Descriptor = (u64, u32, u16, u16);

impl Guest {
    pub(crate) fn new() -> Result<Self> {
        let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(MEMORY)?;
        Ok(Self { memory, offered: 0 })
    }

    /// Has a VMM connect and start the queue, which it says is here.
    pub(crate) fn connect(&self, socket: &Path, base: u16) -> Result<Vmm> {
        let vmm = Vmm::open(socket)?;
        vmm.share(&self.memory)?;
        vmm.start(base)?;
        Ok(vmm)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write_all_at(bytes, address)?)
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// Writes descriptors, from the first on, into a table.
    pub(crate) fn describe_at(&self, table: u64, descriptors: &[Descriptor]) -> Result<()> {
        for ((address, length, flags, next), at) in descriptors.iter().zip((table..).step_by(16)) {
            let bytes = [
                &address.to_le_bytes()[..],
                &length.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.to_le_bytes(),
            ];
            self.write(at, &bytes.concat())?;
        }
        Ok(())
    }

    /// Writes descriptors into the queue's table.
    pub(crate) fn describe(&self, descriptors: &[Descriptor]) -> Result<()> {
        self.describe_at(DESCRIPTORS, descriptors)
    }

    /// Offers the chain that begins with this descriptor.
    pub(crate) fn offer(&mut self, head: u16) -> Result<()> {
        let place = u64::from(self.offered % QUEUE_SIZE);
        self.write(AVAILABLE + 4 + 2 * place, &head.to_le_bytes())?;
        self.offered = self.offered.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.offered.to_le_bytes())
    }

    /// How many chains were offered.
    pub(crate) fn offered(&self) -> u16 {
        self.offered
    }

    /// How many chains were given back.
    pub(crate) fn answered(&self) -> Result<u16> {
        let bytes = self.read(USED + 2, 2)?;
        Ok(u16::from_le_bytes(*bytes.first_chunk().context("two")?))
    }

    /// Waits until all were given back, and says how much of the last one's buffer was used.
    pub(crate) fn used(&self) -> Result<u32> {
        let began = Instant::now();
        while self.answered()? != self.offered {
            ensure!(began.elapsed() < PATIENCE, "no answer");
            // Most are there sooner than a sleep would end.
            match began.elapsed() < Duration::from_micros(500) {
                true => yield_now(),
                false => sleep(Duration::from_millis(1)),
            }
        }
        let place = u64::from(self.offered.wrapping_sub(1) % QUEUE_SIZE);
        let bytes = self.read(USED + 4 + 8 * place + 4, 4)?;
        Ok(u32::from_le_bytes(*bytes.first_chunk().context("four")?))
    }

    /// Offers a command, and waits until it was taken from the queue; not until it is answered.
    pub(crate) fn begin(&mut self, vmm: &Vmm, command: &[u8]) -> Result<()> {
        self.write(BUFFER, command)?;
        self.describe(&[
            (BUFFER, command.len().try_into()?, NEXT, 1),
            (BUFFER, MAX_SIZE.try_into()?, WRITE, 0),
        ])?;
        self.offer(0)?;
        vmm.kick.write(1)?;
        let deadline = Instant::now() + PATIENCE;
        let kick = format!("/proc/self/fdinfo/{}", vmm.kick.as_raw_fd());
        let is_taken = |info: &str| {
            let count = info
                .lines()
                .find_map(|line| line.strip_prefix("eventfd-count:"));
            count.is_some_and(|count| count.trim() == "0")
        };
        while !is_taken(&fs::read_to_string(&kick)?) {
            ensure!(Instant::now() < deadline, "the command is not taken");
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The answer to the last command, once it is there.
    pub(crate) fn end(&self) -> Result<Vec<u8>> {
        self.read(BUFFER, self.used()?.try_into()?)
    }

    /// Offers these descriptors as a chain, and says how much of its buffer was used.
    pub(crate) fn chain(&mut self, vmm: &Vmm, descriptors: &[Descriptor]) -> Result<u32> {
        self.describe(descriptors)?;
        self.offer(0)?;
        vmm.kick.write(1)?;
        self.used()
    }
}

impl Vmm {
    /// Connects, as far as the features, once the VMM before is gone. Its end is not seen at once:
    /// another test that starts a program has a copy of every descriptor for a moment.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::open_once(socket) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(2)),
                opened => return opened,
            }
        }
    }

    fn open_once(socket: &Path) -> Result<Self> {
        let mut frontend = Frontend::connect(socket, 1)?;
        frontend.set_owner()?;
        let features = frontend.get_features()?;
        let wanted = VERSION_1 | PROTOCOL_FEATURES;
        ensure!(features & wanted == wanted, "{features:x}");
        frontend.set_features(wanted)?;
        let protocol = frontend.get_protocol_features()?;
        frontend.set_protocol_features(
            protocol
                & (VhostUserProtocolFeatures::REPLY_ACK
                    | VhostUserProtocolFeatures::RESET_DEVICE
                    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS),
        )?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Ok(Self {
            frontend,
            kick: EventFd::new(0)?,
            call: EventFd::new(0)?,
        })
    }

    /// Shares this as the guest's memory.
    pub(crate) fn share(&self, memory: &impl AsRawFd) -> Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: VMM_ADDRESS,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region])?;
        Ok(())
    }

    /// Starts the queue.
    pub(crate) fn start(&self, base: u16) -> Result<()> {
        let mut frontend = self.frontend.clone();
        frontend.set_vring_num(0, QUEUE_SIZE)?;
        frontend.set_vring_base(0, base)?;
        frontend.set_vring_addr(
            0,
            &VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: VMM_ADDRESS + DESCRIPTORS,
                used_ring_addr: VMM_ADDRESS + USED,
                avail_ring_addr: VMM_ADDRESS + AVAILABLE,
                log_addr: None,
            },
        )?;
        frontend.set_vring_kick(0, &self.kick)?;
        frontend.set_vring_call(0, &self.call)?;
        Ok(frontend.set_vring_enable(0, true)?)
    }
}

/// Commands of a guest, one after the other.
pub(crate) struct Channel<'g>(pub(crate) &'g mut Guest, pub(crate) &'g Vmm);

impl Commands for Channel<'_> {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        let Self(guest, vmm) = self;
        guest.write(BUFFER, command)?;
        let size = u32::try_from(MAX_SIZE)?;
        let used = guest.chain(
            vmm,
            &[
                (BUFFER, command.len().try_into()?, NEXT, 1),
                (BUFFER, size, WRITE, 0),
            ],
        )?;
        guest.read(BUFFER, used.try_into()?)
    }
}
