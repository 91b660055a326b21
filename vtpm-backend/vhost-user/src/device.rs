//! What a device is to its queue, and the TPM to a device.

/// A TPM, on which a guest can do nothing but have commands carried out and given up.
pub trait Tpm {
    /// Carries out one command, whatever it contains, and appends the response. One that takes long
    /// may go on: then its response is handed to [`Frontend::complete`](crate::Frontend::complete).
    /// The one before, if that still goes on, is given up, and nobody gets its response.
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>) -> Execution;

    /// Nobody wants the response of the command that goes on.
    fn give_up(&mut self);
}

/// How far a command, or the request that asked for it, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// It is over, and the answer is there.
    Done,
    /// It goes on, and others can be served meanwhile.
    GoesOn,
}

/// A request of the guest's driver: what it wrote, all of it copied out of the guest's memory before
/// anything is written there. A driver may use one buffer for both.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// What the driver wrote; only the first [`Device::longest_request`] bytes, if it is longer.
    pub bytes: &'r [u8],
    /// How much the driver wrote.
    pub length: usize,
    /// Room for the answer.
    pub room: usize,
}

/// A virtio device with one queue of requests, and no configuration space.
pub trait Device {
    /// The feature bits of this kind of device; those of rings and transport are not among them.
    fn features(&self) -> u64 {
        0
    }

    /// Whether VMMs that connect again negotiate again, and share the guest's memory again whatever
    /// they negotiated. Otherwise nothing is offered to them that a backend would have to remember.
    fn is_negotiated_anew(&self) -> bool {
        true
    }

    /// How many bytes of a request are copied at most.
    fn longest_request(&self) -> usize;

    /// Answers a request: appends at most `request.room` bytes to `answer`. A longer one is not
    /// delivered: the driver finds that none of its buffer was used. A request that goes on is
    /// answered by the TPM's response, once that is there; no other is served before.
    fn serve(&mut self, request: Request<'_>, tpm: &mut dyn Tpm, answer: &mut Vec<u8>)
    -> Execution;

    /// The response to a command that went on, although the request for it was answered. False if
    /// nobody waits for it.
    fn complete(&mut self, _response: &[u8]) -> bool {
        false
    }

    /// The driver starts anew: it reset the device. Nothing that belongs to the TPM may change.
    fn reset(&mut self) {}
}
