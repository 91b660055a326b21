//! What the VMM orders over its connection: memory, features, the rings and when they run.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut as RequestHandler,
};
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::QueueT;

use crate::device::Device;
use crate::eventfd;
use crate::memory::Memory;

/// `VIRTIO_RING_F_INDIRECT_DESC`
const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_RING_F_EVENT_IDX`
const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`
const VERSION_1: u64 = 1 << 32;
const RING_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
/// The largest that the specification allows. A VMM offers its guest what it likes.
pub(crate) const MAX_QUEUE_SIZE: u16 = 32768;
/// As many regions as KVM has, without its own.
const MAX_REGIONS: u64 = 509;
/// A device without configuration reads as zeros; VMMs ask for this much at most.
const MAX_CONFIG: u32 = 256;

/// What VMMs want, and what is kept here: crosvm and `virtio-driver` demand several of them.
fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// What one connection has set up.
pub(crate) struct Protocol {
    offered: u64,
    memory: Memory,
    ring: VringMutex,
    kick: Option<Arc<OwnedFd>>,
    /// Whether the ring has to be looked at: it was started or changed.
    is_changed: bool,
    /// Whether the ring was started since it was last taken up.
    is_started: bool,
    was_reset: bool,
}

impl Protocol {
    /// For this device.
    pub(crate) fn new(device: &dyn Device, memory: Memory, ring: VringMutex) -> Self {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        Self {
            offered: device.features() | RING_FEATURES | protocol,
            memory,
            ring,
            kick: None,
            is_changed: false,
            is_started: false,
            was_reset: false,
        }
    }

    /// What says that the driver has put something into the queue, while that runs.
    pub(crate) fn kick(&self) -> Option<&Arc<OwnedFd>> {
        self.kick.as_ref().filter(|_| self.is_running())
    }

    /// Whether the ring may be looked at.
    pub(crate) fn is_running(&self) -> bool {
        let state = self.ring.get_ref();
        state.get_queue().ready() && state.is_enabled()
    }

    /// Whether the ring was started since this was last asked: it is to be taken up anew.
    pub(crate) fn take_start(&mut self) -> bool {
        std::mem::take(&mut self.is_started)
    }

    /// Whether the ring has to be looked at without a kick.
    pub(crate) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Whether the driver reset the device since this was last asked.
    pub(crate) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.was_reset)
    }

    /// There is one queue.
    fn ring(&self, index: u32) -> Result<&VringMutex> {
        match index {
            0 => Ok(&self.ring),
            _ => Err(Error::InvalidParam),
        }
    }

    fn stop(&mut self) {
        self.ring.set_queue_ready(false);
        self.is_started = false;
        self.kick = None;
        self.ring.set_call(None);
    }

    fn guest_address(&self, vmm: u64) -> Result<u64> {
        self.memory.guest_address(vmm).ok_or(Error::InvalidParam)
    }
}

impl RequestHandler for Protocol {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    /// The rings stop. The TPM does not hear of it.
    fn reset_device(&mut self) -> Result<()> {
        self.ring.set_enabled(false);
        self.stop();
        self.was_reset = true;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.ring.set_queue_event_idx(features & EVENT_IDX != 0);
        // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in
        // the enabled state" (vhost-user, ring states).
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            self.ring.set_enabled(true);
            self.is_changed = true;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        refuse_postcopy(postcopy_listening)?;
        self.memory.replace(regions, files)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= MAX_QUEUE_SIZE => {
                self.ring(index)?.set_queue_size(size);
                Ok(())
            }
            _ => Err(Error::InvalidParam),
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = self.ring(index)?;
        let [descriptor, used, available] =
            [descriptor, used, available].map(|vmm| self.guest_address(vmm));
        ring.set_queue_info(descriptor?, available?, used?)
            .map_err(|_| Error::InvalidParam)
    }

    /// Where the VMM thinks the ring is; what the ring says counts.
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_queue_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring(index)?.queue_next_avail();
        self.stop();
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?;
        // Without one the ring would have to be polled.
        let file = file.ok_or(Error::InvalidOperation("a ring without a kick"))?;
        let file = eventfd::accept(file).map_err(Error::ReqHandlerError)?;
        self.kick = Some(Arc::new(OwnedFd::from(file)));
        if !self.ring.get_ref().get_queue().ready() {
            self.ring.set_queue_ready(true);
            self.is_started = true;
        }
        self.is_changed = true;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let file = file.map(eventfd::accept_to_notify).transpose();
        let file = file.map_err(Error::ReqHandlerError)?;
        self.ring(u32::from(index))?.set_call(file);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !protocol_features().bits() {
            0 => Ok(()),
            _ => Err(Error::FeatureMismatch),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        self.is_changed |= enable;
        Ok(())
    }

    fn get_config(
        &mut self,
        _offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let size = usize::try_from(size.min(MAX_CONFIG)).unwrap_or_default();
        Ok(vec![0; size])
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("there is no configuration"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        refuse_postcopy(postcopy_listening)?;
        if self.memory.regions() >= MAX_REGIONS {
            return Err(Error::InvalidParam);
        }
        self.memory.add(region, file)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.memory.remove(region)?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}

const NOT_OFFERED: Error = Error::InvalidOperation("it was not offered");

fn refuse_postcopy(listening: Option<bool>) -> Result<()> {
    match listening {
        None => Ok(()),
        Some(_) => Err(Error::ReqHandlerError(io::ErrorKind::Unsupported.into())),
    }
}
