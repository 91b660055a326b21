//! A guest's memory as a fuzzer fills it, with a device that serves the queue in it.

use std::sync::atomic::Ordering;

use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::device::{Device, Execution, Tpm};
use crate::memory::SharedMemory;
use crate::protocol::MAX_QUEUE_SIZE;
use crate::queue::{Buffers, Served, answer, begin, serve_next};
use crate::virtio_i2c::VirtioI2c;
use crate::virtio_tpm::VirtioTpm;

/// Where descriptors, the available ring and the used ring begin, and how much memory there is.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 256;
const USED: u64 = 304;
const MEMORY: usize = 8192;
/// How many descriptors there are.
const QUEUE_SIZE: u16 = 16;
/// What a device serves of one guest at most.
const LONGEST: usize = 64;

/// A TPM that answers with twice as many bytes as the command's last one says, and later if that is
/// odd.
#[derive(Default)]
struct Echo {
    executed: usize,
    /// The response of the command that goes on.
    later: Option<Vec<u8>>,
}

impl Tpm for Echo {
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>) -> Execution {
        self.executed += 1;
        let last = command.last().copied().unwrap_or_default();
        let answer = vec![last; usize::from(last) * 2];
        self.later = None;
        if last % 2 == 1 {
            self.later = Some(answer);
            return Execution::GoesOn;
        }
        response.extend_from_slice(&answer);
        Execution::Done
    }

    fn give_up(&mut self) {
        self.later = None;
    }
}

/// Serves a queue of 16 in a memory that begins with `bytes`, but for the first one: of virtio-tpm, or
/// of virtio-i2c if that is odd. Gives back how many requests were served.
///
/// # Panics
///
/// If a request is served that was not offered, or the TPM is asked more often than there were
/// requests, or the rings do not agree with what was done.
pub fn queue(bytes: &[u8]) -> usize {
    let Some((kind, bytes)) = bytes.split_first() else {
        return 0;
    };
    let Ok(memory) = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]) else {
        return 0;
    };
    let _ = memory.write(bytes, GuestAddress(0));
    let shared = SharedMemory::new(memory);
    let Ok(ring) = VringMutex::new(shared.clone(), MAX_QUEUE_SIZE) else {
        return 0;
    };
    ring.set_queue_size(QUEUE_SIZE);
    ring.set_queue_event_idx(kind & 2 != 0);
    let placed = ring.set_queue_info(DESCRIPTORS, AVAILABLE, USED);
    assert!(placed.is_ok(), "the rings are in memory");
    ring.set_queue_ready(true);
    let mut tpm_device = VirtioTpm;
    let mut i2c_device = VirtioI2c::default();
    let device: &mut dyn Device = match kind & 1 {
        0 => &mut tpm_device,
        _ => &mut i2c_device,
    };
    let memory = shared.memory();
    serve(&ring, &memory, device)
}

fn serve(ring: &VringMutex, memory: &GuestMemoryMmap, device: &mut dyn Device) -> usize {
    let (mut tpm, mut buffers) = (Echo::default(), Buffers::default());
    if begin(ring, memory).is_err() {
        return 0;
    }
    let taken = |ring: &VringMutex| {
        let state = ring.get_ref();
        let queue = state.get_queue();
        (queue.next_avail(), queue.next_used())
    };
    let (first, used) = taken(ring);
    assert_eq!(first, used, "all that was taken was answered");
    let mut served = 0;
    while served < LONGEST {
        let before = taken(ring);
        let more = match serve_next(ring, memory, &mut buffers, device, &mut tpm) {
            Ok(Served::Done { more }) => Ok(more),
            Ok(Served::Open(open)) => {
                let response = tpm.later.take();
                assert!(response.is_some(), "the TPM is at it");
                answer(ring, memory, &open, &response.unwrap_or_default())
            }
            Err(error) => Err(error),
        };
        let after = taken(ring);
        let Ok(more) = more else {
            break;
        };
        let advanced = after.0.wrapping_sub(before.0);
        assert!(advanced <= 1, "one request at a time");
        assert_eq!(after.0, after.1, "all that was taken was answered");
        let shown = ring
            .get_ref()
            .get_queue()
            .used_idx(memory, Ordering::Acquire);
        // A guest may have its buffer where the ring is.
        assert!(shown.is_ok());
        served += usize::from(advanced);
        if !more {
            break;
        }
    }
    assert!(tpm.executed <= served + 1, "{} of {served}", tpm.executed);
    served
}
