//! A guest's commands to a TPM on an I2C bus, by a queue that is written by hand: as Linux' drivers send
//! them, but for checksums and parts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Commands;
use super::rings::{BUFFER, Guest, NEXT, Vmm, WRITE};

/// Where its requests and their answers are.
const ANSWER: u64 = BUFFER + 0x2000;
/// Its address on the bus, as a request's header has it.
const TPM: [u8; 4] = [0x2e << 1, 0, 0, 0];
/// `VIRTIO_I2C_FLAGS_M_RD`
const READ: u32 = 1 << 1;
// TCG PC Client Platform TPM Profile, §7.
const ACCESS: u8 = 0x04;
const STATUS: u8 = 0x18;
const FIFO: u8 = 0x24;
const REQUEST_USE: u8 = 1 << 1;
const COMMAND_READY: u8 = 1 << 6;
const GO: u8 = 1 << 5;
const AVAILABLE: u8 = 1 << 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// Commands of a guest, one after the other.
pub(crate) struct I2cChannel<'g>(pub(crate) &'g mut Guest, pub(crate) &'g Vmm);

impl I2cChannel<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.request(0, bytes, 0).map(drop)
    }

    fn read(&mut self, register: u8, length: u32) -> Result<Vec<u8>> {
        self.write(&[register])?;
        self.request(READ, &[], length)
    }

    fn request(&mut self, flags: u32, bytes: &[u8], room: u32) -> Result<Vec<u8>> {
        let Self(guest, vmm) = self;
        let request = [&TPM[..], &flags.to_le_bytes(), bytes].concat();
        guest.write(BUFFER, &request)?;
        let length = request.len().try_into()?;
        let chain = [(BUFFER, length, NEXT, 1), (ANSWER, room + 1, WRITE, 0)];
        let used = guest.chain(vmm, &chain)?;
        ensure!(used == room + 1, "{used} of {} bytes", room + 1);
        let mut answer = guest.read(ANSWER, used.try_into()?)?;
        ensure!(answer.pop() == Some(0), "it is not acknowledged");
        Ok(answer)
    }
}

impl Commands for I2cChannel<'_> {
    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.write(&[ACCESS, REQUEST_USE])?;
        self.write(&[STATUS, COMMAND_READY])?;
        self.write(&[&[FIFO][..], command].concat())?;
        self.write(&[STATUS, GO])?;
        let deadline = Instant::now() + PATIENCE;
        while self
            .read(STATUS, 1)?
            .first()
            .is_some_and(|status| status & AVAILABLE == 0)
        {
            ensure!(Instant::now() < deadline, "no response");
        }
        let mut response = self.read(FIFO, 10)?;
        let length = response.get(2..6).context("a header")?;
        let length = u32::from_be_bytes(length.try_into()?);
        let rest = length.saturating_sub(10);
        if rest > 0 {
            response.extend(self.read(FIFO, rest)?);
        }
        self.write(&[STATUS, COMMAND_READY])?;
        Ok(response)
    }
}
