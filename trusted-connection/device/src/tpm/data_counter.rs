//! The numbers of what a device signs: a counter in its TPM (`TPM_NT_COUNTER`), which no command sets back.
//!
//! The first signature makes it, with the owner's authorization, which is empty on most devices. Whoever may
//! use the TPM may increment it; whoever has the owner's authorization may remove it and make it anew, and it
//! goes on above what it had.

use cert_chain::ek_memory::EkMemory;
use cert_chain::layout::DATA_COUNTER;
use data_signing::number::{self, Counter, CounterProblem};
use tpm_wire::{Operation, ResponseCode};

use super::channel::Channel;
use super::error::TpmError;
use super::wire::{Command, Reader};
use super::{DeviceTpm, OWNER};

const DEFINE: Operation = Operation("TPM2_NV_DefineSpace");
const INCREMENT: Operation = Operation("TPM2_NV_Increment");
const READ: Operation = Operation("TPM2_NV_Read");
const READ_PUBLIC: Operation = Operation("TPM2_NV_ReadPublic");

const CC_NV_DEFINE_SPACE: u32 = 0x0000_012a;
const CC_NV_INCREMENT: u32 = 0x0000_0134;
const CC_NV_READ: u32 = 0x0000_014e;
const CC_NV_READ_PUBLIC: u32 = 0x0000_0169;

const SHA256: u16 = 0x000b;
const SIZE: u16 = 8;
/// `TPM_NT_COUNTER` in the bits of the index's type (TPM 2.0 Part 2 §13.4).
const NT_COUNTER: u32 = 0x1 << 4;
const NT_MASK: u32 = 0xf << 4;
const AUTHWRITE: u32 = 1 << 2;
const AUTHREAD: u32 = 1 << 18;
const NO_DA: u32 = 1 << 25;
/// An orderly counter is not kept at once, and may leap after a loss of power.
const ORDERLY: u32 = 1 << 26;

impl DeviceTpm {
    /// A number that no other signature of this TPM has or will have, higher than all before.
    pub fn next_number(&mut self) -> Result<u64, TpmError> {
        let counter = &mut OpenCounter(&mut self.channel);
        counter.make_sure_that_it_counts()?;
        number::next(counter)
    }
}

struct OpenCounter<'a>(&'a mut Channel);

impl OpenCounter<'_> {
    fn make_sure_that_it_counts(&mut self) -> Result<(), TpmError> {
        if !self.0.has_index(DATA_COUNTER)? {
            match self.define() {
                Ok(()) => {}
                // Somebody else may just have made it.
                Err(_) if self.0.has_index(DATA_COUNTER)? => {}
                Err(TpmError::Refused { code, .. }) => return Err(TpmError::Counter(code)),
                Err(error) => return Err(error),
            }
        }
        match self.counts()? {
            true => Ok(()),
            false => Err(CounterProblem::NoCounter.into()),
        }
    }

    fn define(&mut self) -> Result<(), TpmError> {
        let attributes = NT_COUNTER | AUTHWRITE | AUTHREAD | NO_DA;
        let area = [
            &DATA_COUNTER.to_be_bytes()[..],
            &SHA256.to_be_bytes(),
            &attributes.to_be_bytes(),
            // No policy.
            &[0, 0],
            &SIZE.to_be_bytes(),
        ];
        let command = Command::new(CC_NV_DEFINE_SPACE)
            .authorized(OWNER)
            .sized(&[])
            .sized(&area.concat());
        self.0.run(DEFINE, &command, 0).map(drop)
    }

    /// Whether what is there is a counter that keeps every value.
    fn counts(&mut self) -> Result<bool, TpmError> {
        let command = Command::new(CC_NV_READ_PUBLIC).handle(DATA_COUNTER);
        let response = self.0.run(READ_PUBLIC, &command, 0)?;
        let read = || {
            // TPMS_NV_PUBLIC: index, algorithm of the name, attributes, policy, size.
            let mut area = Reader::new(Reader::new(&response).sized()?);
            let _index = area.u32()?;
            let _algorithm = area.u16()?;
            let attributes = area.u32()?;
            let _policy = area.sized()?;
            Some((attributes, area.u16()?))
        };
        let (attributes, size) = read().ok_or(TpmError::Response {
            operation: READ_PUBLIC,
        })?;
        Ok(attributes & NT_MASK == NT_COUNTER && attributes & ORDERLY == 0 && size == SIZE)
    }
}

impl Counter for OpenCounter<'_> {
    type Error = TpmError;

    fn increment(&mut self) -> Result<(), TpmError> {
        let command = Command::new(CC_NV_INCREMENT)
            .authorized(DATA_COUNTER)
            .handle(DATA_COUNTER);
        self.0.run(INCREMENT, &command, 0).map(drop)
    }

    fn read(&mut self) -> Result<Option<u64>, TpmError> {
        let command = Command::new(CC_NV_READ)
            .authorized(DATA_COUNTER)
            .handle(DATA_COUNTER)
            .u16(SIZE)
            .u16(0);
        let response = match self.0.run(READ, &command, 0) {
            Ok(response) => response,
            Err(TpmError::Refused { code, .. }) if code == ResponseCode::NV_UNINITIALIZED => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let value = Reader::new(&response).sized();
        let value = value.and_then(|value| <[u8; 8]>::try_from(value).ok());
        let value = value.ok_or(TpmError::Response { operation: READ })?;
        Ok(Some(u64::from_be_bytes(value)))
    }
}
