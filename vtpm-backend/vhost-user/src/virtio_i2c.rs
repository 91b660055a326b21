//! A TPM behind virtio-i2c (device 34; virtio 1.2, 5.17): the bus has one device, and each request
//! is one write or one read.

use tpm_wire::MAX_SIZE;

use crate::device::{Device, Execution, Request, Tpm};
use crate::tis_i2c::{ADDRESS, Nack, TisI2c};

/// A bus with a TPM on it.
#[derive(Debug, Default)]
pub struct VirtioI2c {
    tpm: TisI2c,
    /// The next request belongs to one that failed, and is to fail like that.
    next_fails: bool,
}

/// `struct virtio_i2c_out_hdr`: address, padding, flags.
const HEADER: usize = 8;
/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`, without which no driver goes on.
const ZERO_LENGTH_REQUEST: u64 = 1;
/// `VIRTIO_I2C_FLAGS_FAIL_NEXT`
const FAIL_NEXT: u32 = 1;
/// `VIRTIO_I2C_FLAGS_M_RD`
const READ: u32 = 1 << 1;
/// `struct virtio_i2c_in_hdr`
const OK: u8 = 0;
const ERROR: u8 = 1;
/// The address of a register, and a whole command.
const LONGEST_WRITE: usize = 1 + MAX_SIZE;
/// No driver asks for more at once: Linux' lengths have 16 bits.
const LONGEST_READ: usize = 0xffff;

impl Device for VirtioI2c {
    fn features(&self) -> u64 {
        ZERO_LENGTH_REQUEST
    }

    /// QEMU's `vhost-user-i2c` does not (7.2 to 10.0): it negotiates once in its life, and shares its
    /// guest's memory again only if it cannot share it in slots.
    fn is_negotiated_anew(&self) -> bool {
        false
    }

    fn longest_request(&self) -> usize {
        HEADER + LONGEST_WRITE
    }

    /// Behind what is read comes one byte that says whether it was acknowledged. Where that has no
    /// place, nothing happens.
    fn serve(
        &mut self,
        request: Request<'_>,
        tpm: &mut dyn Tpm,
        answer: &mut Vec<u8>,
    ) -> Execution {
        let Some(length) = request.room.checked_sub(1).filter(|l| *l <= LONGEST_READ) else {
            tracing::debug!(
                room = request.room,
                "a request without a place for its status"
            );
            return Execution::Done;
        };
        let Some((header, data)) = Header::split(request.bytes) else {
            tracing::debug!(length = request.length, "a request without a header");
            return Execution::Done;
        };
        let served = match self.next_fails || request.length != request.bytes.len() {
            true => Err(Nack),
            false => self.transfer(header, data, length, tpm, answer),
        };
        self.next_fails = served.is_err() && header.flags & FAIL_NEXT != 0;
        answer.resize(length, 0);
        answer.push(if served.is_ok() { OK } else { ERROR });
        Execution::Done
    }

    fn complete(&mut self, response: &[u8]) -> bool {
        self.tpm.complete(response)
    }

    /// The bus is new; so is the TPM's interface, and the TPM knows nothing of it.
    fn reset(&mut self) {
        *self = Self::default();
    }
}

impl VirtioI2c {
    fn transfer(
        &mut self,
        header: Header,
        data: &[u8],
        length: usize,
        tpm: &mut dyn Tpm,
        answer: &mut Vec<u8>,
    ) -> Result<(), Nack> {
        // Seven bits, above one that is not used.
        if header.address != u16::from(ADDRESS) << 1 {
            return Err(Nack);
        }
        match (header.flags & READ != 0, data, length) {
            (true, [], length) => self.tpm.read(length, answer),
            (false, data, 0) => self.tpm.write(data, tpm),
            _ => Err(Nack),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    address: u16,
    flags: u32,
}

impl Header {
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([a0, a1, _, _, flags @ ..], data) = bytes.split_first_chunk::<HEADER>()?;
        let header = Self {
            address: u16::from_le_bytes([*a0, *a1]),
            flags: u32::from_le_bytes(*flags),
        };
        Some((header, data))
    }
}
