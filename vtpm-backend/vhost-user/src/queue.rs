//! The queue in the guest's memory: requests are taken from it one by one and in their order, each
//! is answered before the next is looked at. One that the TPM is long at stays open meanwhile, and
//! others than its driver can be served.
//!
//! So the number of answers that the ring shows is the number of requests that were taken, at any
//! time that a VMM can see it. After a reconnection that number counts, and not the VMM's: a VMM that
//! lost its connection in the middle of a request takes that for unanswered, and offers it again,
//! although it was carried out and its answer is in the guest's memory.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zeroize::{Zeroize, Zeroizing};

use crate::device::{Device, Execution, Request, Tpm};

/// Why the queue cannot go on. It is not looked at again until the VMM starts it anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BrokenQueue {
    #[error("the rings are not in the memory that the VMM shares")]
    NotInMemory,
    #[error("the rings say what cannot be: {0}")]
    Ring(#[from] QueueError),
}

/// Room for one request and its answer, kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    request: Zeroizing<Vec<u8>>,
    answer: Zeroizing<Vec<u8>>,
    room: Room,
}

/// Where an answer goes.
#[derive(Debug, Default)]
struct Room {
    parts: Vec<(GuestAddress, u32)>,
    /// How many bytes that are.
    size: usize,
}

/// A request that was taken and is not answered yet.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    head: u16,
    room: Room,
}

/// What became of the next request.
#[derive(Debug)]
pub(crate) enum Served {
    /// It was answered, or there was none.
    Done {
        /// Another waits.
        more: bool,
    },
    /// It stays open until it is answered with [`answer`].
    Open(OpenRequest),
}

/// More than this is not kept: no driver asks for it twice.
const KEPT_ROOM: usize = 64;

/// Takes up a queue where its ring says it is.
pub(crate) fn begin(ring: &VringMutex, memory: &GuestMemoryMmap) -> Result<(), BrokenQueue> {
    let mut state = ring.get_mut();
    let queue = state.get_queue_mut();
    if !queue.is_valid(memory) {
        return Err(BrokenQueue::NotInMemory);
    }
    let answered = queue.used_idx(memory, Ordering::Acquire)?.0;
    if answered != queue.next_avail() {
        tracing::info!(
            answered,
            offered = queue.next_avail(),
            "the VMM offers requests again that were answered, or leaves some out: the ring counts"
        );
    }
    queue.set_next_used(answered);
    queue.set_next_avail(answered);
    Ok(())
}

/// Whether a queue that runs holds a request that was not taken.
pub(crate) fn is_offered(ring: &VringMutex, memory: &GuestMemoryMmap) -> bool {
    let state = ring.get_ref();
    let queue = state.get_queue();
    let offered = queue.avail_idx(memory, Ordering::Acquire);
    let is_running = queue.ready() && state.is_enabled();
    is_running && offered.is_ok_and(|offered| offered.0 != queue.next_avail())
}

/// Serves the next request, if there is one. An open one is to be answered before.
pub(crate) fn serve_next(
    ring: &VringMutex,
    memory: &GuestMemoryMmap,
    buffers: &mut Buffers,
    device: &mut dyn Device,
    tpm: &mut dyn Tpm,
) -> Result<Served, BrokenQueue> {
    let mut state = ring.get_mut();
    let chain = state.get_queue_mut().iter(memory)?.next();
    let Some(chain) = chain else {
        let more = state.get_queue_mut().enable_notification(memory)?;
        return Ok(Served::Done { more });
    };
    let head = chain.head_index();
    drop(state);
    let used = match buffers.serve(chain, memory, device, tpm) {
        (Execution::Done, used) => used,
        (Execution::GoesOn, _) => {
            let room = std::mem::take(&mut buffers.room);
            return Ok(Served::Open(OpenRequest { head, room }));
        }
    };
    buffers.room.clear();
    let more = give_back(ring, memory, head, used)?;
    Ok(Served::Done { more })
}

/// Answers an open request. True if another waits.
pub(crate) fn answer(
    ring: &VringMutex,
    memory: &GuestMemoryMmap,
    open: &OpenRequest,
    answer: &[u8],
) -> Result<bool, BrokenQueue> {
    let used = open.room.write(memory, answer);
    give_back(ring, memory, open.head, used)
}

/// Gives a chain back to the driver with so many bytes of its buffer used. True if another request
/// waits.
fn give_back(
    ring: &VringMutex,
    memory: &GuestMemoryMmap,
    head: u16,
    used: u32,
) -> Result<bool, BrokenQueue> {
    let mut state = ring.get_mut();
    let queue = state.get_queue_mut();
    queue.add_used(memory, head, used)?;
    if queue.needs_notification(memory)? {
        // One that is full of notifications needs no other.
        let _ = state.signal_used_queue();
    }
    Ok(state.get_queue_mut().enable_notification(memory)?)
}

impl Buffers {
    /// Serves one request, and says how many bytes of its buffer were used.
    fn serve<'m>(
        &mut self,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        memory: &'m GuestMemoryMmap,
        device: &mut dyn Device,
        tpm: &mut dyn Tpm,
    ) -> (Execution, u32) {
        let mut execution = Execution::Done;
        let used = match self.read(chain, memory, device.longest_request()) {
            Some(length) => {
                let request = Request {
                    bytes: self.request.as_slice(),
                    length,
                    room: self.room.size,
                };
                execution = device.serve(request, tpm, &mut self.answer);
                match execution {
                    Execution::Done => self.room.write(memory, &self.answer),
                    Execution::GoesOn => 0,
                }
            }
            None => {
                tracing::debug!("a request that cannot be read is not carried out");
                0
            }
        };
        self.request.zeroize();
        self.answer.zeroize();
        (execution, used)
    }

    /// Reads a request whole, before anything is written: how long it is. None if the chain ends
    /// early, or is not what the specification allows.
    fn read<M>(
        &mut self,
        chain: DescriptorChain<M>,
        memory: &GuestMemoryMmap,
        longest: usize,
    ) -> Option<usize>
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let mut length = 0_usize;
        let mut goes_on = true;
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let size = descriptor.len();
            let bytes = usize::try_from(size).ok()?;
            if descriptor.is_write_only() {
                self.room.parts.push((descriptor.addr(), size));
                self.room.size = self.room.size.checked_add(bytes)?;
                continue;
            }
            // "The driver MUST place any device-writable descriptor elements after any
            // device-readable descriptor elements" (virtio 1.2, 2.7.4.2).
            if self.room.size > 0 {
                return None;
            }
            let wanted = bytes.min(longest.saturating_sub(self.request.len()));
            let start = self.request.len();
            self.request.resize(start.checked_add(wanted)?, 0);
            let place = self.request.get_mut(start..)?;
            memory.read_slice(place, descriptor.addr()).ok()?;
            length = length.checked_add(bytes)?;
        }
        // The library ends a chain where it leads out of its table, or in a circle.
        (!goes_on).then_some(length)
    }
}

impl Room {
    fn clear(&mut self) {
        self.parts.clear();
        self.parts.shrink_to(KEPT_ROOM);
        self.size = 0;
    }

    /// Writes an answer, all of it or none, and says how many bytes were used for it.
    fn write(&self, memory: &GuestMemoryMmap, answer: &[u8]) -> u32 {
        let mut rest = answer;
        if rest.len() > self.size {
            tracing::debug!(
                length = rest.len(),
                room = self.size,
                "an answer has no room in the driver's buffer"
            );
            return 0;
        }
        for (address, size) in &self.parts {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            let (part, more) = rest.split_at(size.min(rest.len()));
            if memory.write_slice(part, *address).is_err() {
                tracing::debug!("the driver's buffer is not in the guest's memory");
                return 0;
            }
            rest = more;
        }
        u32::try_from(answer.len()).unwrap_or(0)
    }
}
