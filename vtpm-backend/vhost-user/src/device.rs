//! What a device is to its queue, and the TPM to a device.

/// A TPM, on which a guest can do nothing but have commands carried out.
pub trait Tpm {
    /// Carries out one command, whatever it contains, and appends the response.
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>);
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
    /// delivered: the driver finds that none of its buffer was used.
    fn serve(&mut self, request: Request<'_>, tpm: &mut dyn Tpm, answer: &mut Vec<u8>);

    /// The driver starts anew: it reset the device. Nothing that belongs to the TPM may change.
    fn reset(&mut self) {}
}
