//! The registers of a TPM on an I2C bus: what is written to it and read from it, byte by byte (PC
//! Client Platform TPM Profile 1.05, 7: "I2C interface").
//!
//! A write begins with a register's address. Alone it selects the register, for the reads that
//! follow; what comes after it is written there. The FIFO has no addresses of its own: selecting it
//! again does not move it, so that drivers can take a response in parts.

mod register;
mod transfer;

use crate::device::Tpm;
use register::{DEVICE_ADDRESS, Place, Register};
use transfer::Transfer;

/// A TPM's interface, to which a guest may do anything in any order. It has locality 0 alone.
#[derive(Debug, Default)]
pub(crate) struct TisI2c {
    /// Where reads begin.
    selected: Option<Place>,
    /// Whether the driver uses locality 0. Only then are status and FIFO to be had.
    is_active: bool,
    /// Whether the driver wants checksums; nothing depends on it.
    wants_checksum: bool,
    transfer: Transfer,
}

/// The TPM does not acknowledge: nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nack;

/// The address on the bus.
pub(crate) const ADDRESS: u8 = DEVICE_ADDRESS;

/// `TPM_ACCESS`: the register can be relied on.
const ACCESS_VALID: u8 = 1 << 7;
/// `activeLocality`; written, it gives the locality up.
const ACCESS_ACTIVE: u8 = 1 << 5;
/// `requestUse`
const ACCESS_REQUEST: u8 = 1 << 1;
/// `tpmEstablishment`: no dynamic launch took place.
const ACCESS_NO_ESTABLISHMENT: u8 = 1;

/// `TPM_STS`: the register can be relied on (`stsValid`).
const STATUS_VALID: u8 = 1 << 7;
const COMMAND_READY: u8 = 1 << 6;
const GO: u8 = 1 << 5;
const DATA_AVAILABLE: u8 = 1 << 4;
const EXPECT: u8 = 1 << 3;
const SELF_TEST_DONE: u8 = 1 << 2;
const RESPONSE_RETRY: u8 = 1 << 1;

impl TisI2c {
    /// A write of these bytes. One of no bytes asks whether there is a TPM, and changes nothing.
    pub(crate) fn write(&mut self, bytes: &[u8], tpm: &mut dyn Tpm) -> Result<(), Nack> {
        let Some((address, data)) = bytes.split_first() else {
            return Ok(());
        };
        self.selected = Place::at(*address);
        let place = self.selected.ok_or(Nack)?;
        if data.len() > place.width {
            return Err(Nack);
        }
        let first = data.first().filter(|_| place.offset == 0);
        match (place.register, first) {
            (_, None) | (Register::Constant(_) | Register::Checksum, _) => Ok(()),
            (Register::LocalitySelect, Some(0)) => Ok(()),
            (Register::LocalitySelect | Register::DeviceAddress, Some(_)) => Err(Nack),
            (Register::ChecksumEnable, Some(value)) => {
                self.wants_checksum = value & 1 != 0;
                Ok(())
            }
            (Register::Access, Some(value)) => {
                self.write_access(*value, tpm);
                Ok(())
            }
            (Register::Status | Register::Fifo, Some(_)) if !self.is_active => Ok(()),
            (Register::Status, Some(value)) => {
                self.write_status(*value, tpm);
                Ok(())
            }
            (Register::Fifo, Some(_)) => {
                self.transfer.write(data);
                Ok(())
            }
        }
    }

    /// A read of so many bytes, which are appended; ones (0xff) behind the end of a register.
    pub(crate) fn read(&mut self, length: usize, answer: &mut Vec<u8>) -> Result<(), Nack> {
        if length == 0 {
            return Ok(());
        }
        let place = self.selected.ok_or(Nack)?;
        let value = match place.register {
            Register::Fifo if self.is_active => {
                self.transfer.read(length, answer);
                return Ok(());
            }
            Register::Status if self.is_active => self.status(),
            Register::Checksum if self.is_active => self.checksum(),
            Register::Fifo | Register::Status | Register::Checksum => u32::MAX,
            Register::LocalitySelect => 0,
            Register::Access => self.access().into(),
            Register::ChecksumEnable => self.wants_checksum.into(),
            Register::DeviceAddress => DEVICE_ADDRESS.into(),
            Register::Constant(value) => value,
        };
        let end = answer.len().saturating_add(length);
        let bytes = value.to_le_bytes();
        let bytes = bytes.iter().skip(place.offset).take(place.width);
        answer.extend(bytes.take(length));
        answer.resize(end, 0xff);
        Ok(())
    }

    fn access(&self) -> u8 {
        let active = if self.is_active { ACCESS_ACTIVE } else { 0 };
        ACCESS_VALID | ACCESS_NO_ESTABLISHMENT | active
    }

    /// Writes with more than one bit have no meaning, here and in the status.
    fn write_access(&mut self, value: u8, tpm: &mut dyn Tpm) {
        match value {
            ACCESS_REQUEST => self.is_active = true,
            ACCESS_ACTIVE => {
                self.is_active = false;
                self.transfer.forget(tpm);
            }
            _ => {}
        }
    }

    /// Bits 8 to 23 are the burst count; those above are reserved on this bus.
    fn status(&self) -> u32 {
        let progress = self.transfer.progress();
        let mut status = STATUS_VALID | SELF_TEST_DONE;
        for (is_set, bit) in [
            (progress.ready, COMMAND_READY),
            (progress.available, DATA_AVAILABLE),
            (progress.expected, EXPECT),
        ] {
            status |= if is_set { bit } else { 0 };
        }
        u32::from(status) | u32::from(progress.burst) << 8
    }

    /// A read of the response to a command that went on is possible from now on. False if nobody
    /// waits for it.
    pub(crate) fn complete(&mut self, response: &[u8]) -> bool {
        self.transfer.complete(response)
    }

    /// `commandCancel` stands above these bits, and is not needed: `commandReady` gives a command up
    /// as well, and drivers write that.
    fn write_status(&mut self, value: u8, tpm: &mut dyn Tpm) {
        match value {
            COMMAND_READY => self.transfer.prepare(tpm),
            GO => self.transfer.go(tpm),
            RESPONSE_RETRY => self.transfer.rewind(),
            _ => {}
        }
    }

    /// The high byte comes first. It is there for everybody: a driver that wanted checksums does not
    /// say so again when a new backend stands behind the bus.
    fn checksum(&self) -> u32 {
        self.transfer.checksum().swap_bytes().into()
    }
}
