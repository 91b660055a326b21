//! A guest's driver of virtio-tpm, by a library that shares no code with the backend's.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{
    EventFd, Le16, QueueNotifier, VhostUser, VirtioFeatureFlags, VirtioTransport, iovec,
};

/// The longest command and response.
const MAX_SIZE: usize = 4096;
/// Where the device finds the buffer. The library translates nothing.
const BUFFER: usize = 0x10_0000;
const PATIENCE_MS: u16 = 60_000;

/// A driver with one command under way, as Linux' is.
pub struct Driver {
    // Before what it lives in.
    queue: Virtqueue<'static, ()>,
    notifier: Box<dyn QueueNotifier>,
    completions: Arc<EventFd>,
    _transport: VhostUser<Le16, ()>,
    buffer: File,
}

impl Driver {
    /// Sets the device up, with a queue of this size.
    #[expect(
        unsafe_code,
        reason = "the library lends a queue's memory and is to be lent it back"
    )]
    pub fn connect(socket: &Path, queue_size: u16) -> Result<Self> {
        let wanted = VirtioFeatureFlags::VERSION_1
            | VirtioFeatureFlags::RING_EVENT_IDX
            | VirtioFeatureFlags::RING_INDIRECT_DESC;
        let path = socket.to_str().context("a path")?;
        let mut transport = VhostUser::<Le16, ()>::new(path, wanted.bits())?;
        let features = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
        ensure!(features == wanted, "{features:?}");
        ensure!(transport.max_queues() == Some(1));
        let layout = VirtqueueLayout::new::<()>(1, queue_size.into(), features)?;
        let translator = transport.iova_translator();
        let memory = transport.alloc_queue_mem(&layout)?;
        let (start, length) = (memory.as_mut_ptr(), memory.len());
        // SAFETY: the transport keeps it mapped, is moved with the queue, and dropped after it.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, length) };
        let queue = Virtqueue::new(translator, memory, queue_size, features)?;
        let buffer = File::from(memfd_create(c"buffer", MFdFlags::MFD_CLOEXEC)?);
        buffer.set_len(MAX_SIZE.try_into()?)?;
        transport.map_mem_region(BUFFER, MAX_SIZE, buffer.as_raw_fd(), 0)?;
        transport.setup_queues(std::slice::from_ref(&queue))?;
        Ok(Self {
            queue,
            notifier: transport.get_submission_notifier(0),
            completions: transport.get_completion_fd(0),
            _transport: transport,
            buffer,
        })
    }

    fn wait(&self) -> Result<()> {
        let mut polled = [PollFd::new(self.completions.as_fd(), PollFlags::POLLIN)];
        ensure!(
            poll(&mut polled, PollTimeout::from(PATIENCE_MS))? == 1,
            "no answer"
        );
        self.completions.read()?;
        Ok(())
    }

    /// Has a command carried out: the whole response. The buffer of the command is that of the
    /// response, as in ChromeOS' driver.
    pub fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.buffer.write_all_at(command, 0)?;
        self.queue.add_request(|(), add| {
            let part = |length| iovec {
                iov_base: BUFFER as *mut _,
                iov_len: length,
            };
            add(part(command.len()), false)?;
            add(part(MAX_SIZE), true)
        })?;
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        while self.queue.completions().next().is_none() {
            // It wants to be told of the next one, which may have come meanwhile.
            self.queue.set_used_notif_enabled(true);
            if !self.queue.completions().has_next() {
                self.wait()?;
            }
        }
        let mut response = vec![0; MAX_SIZE];
        self.buffer.read_exact_at(&mut response, 0)?;
        let length = response
            .get(2..6)
            .and_then(<[u8]>::first_chunk)
            .context("a length")?;
        response.truncate(u32::from_be_bytes(*length).try_into()?);
        Ok(response)
    }
}
