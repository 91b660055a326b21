//! virtio-tpm (device 62, as ChromeOS and crosvm define it): a request is a TPM command, its answer
//! the response, and there is nothing else, no feature and no configuration.

use tpm_wire::MAX_SIZE;

use crate::device::{Device, Execution, Request, Tpm};

/// The device with this number; the protocol does not carry it.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtioTpm;

impl Device for VirtioTpm {
    fn longest_request(&self) -> usize {
        MAX_SIZE
    }

    /// What is no command, because nothing was written or too much, has no answer. (crosvm's device
    /// answers so, too.)
    fn serve(
        &mut self,
        request: Request<'_>,
        tpm: &mut dyn Tpm,
        answer: &mut Vec<u8>,
    ) -> Execution {
        if request.length == 0 || request.length > MAX_SIZE {
            tracing::debug!(length = request.length, "a request that is no TPM command");
            return Execution::Done;
        }
        tpm.execute(request.bytes, answer)
    }
}
