//! The NV indices of this program, and what is needed of a physical TPM to use them.

use super::error::HardwareError;

/// NV memory. The authorization value is that of the index.
pub trait NvMemory {
    /// What is defined under the index's number.
    fn find(&mut self, index: Index) -> Result<Defined, HardwareError>;

    /// Defines the index.
    fn define(&mut self, index: Index, auth: &[u8; 32]) -> Result<(), HardwareError>;

    /// Removes whatever is defined under the index's number.
    fn undefine(&mut self, index: Index) -> Result<(), HardwareError>;

    /// Reads all of the index.
    fn read(&mut self, index: Index, auth: &[u8; 32]) -> Result<Vec<u8>, HardwareError>;

    /// Writes all of the index.
    fn write(
        &mut self,
        index: Index,
        auth: &[u8; 32],
        contents: &[u8; REGISTER_SIZE],
    ) -> Result<(), HardwareError>;

    /// Adds one to the index, which is a counter.
    fn increment(&mut self, index: Index, auth: &[u8; 32]) -> Result<(), HardwareError>;
}

/// An NV index of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// A register.
    Register(Retention),
    /// The counter.
    Counter,
}

/// What becomes of a register's contents when the TPM is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retention {
    /// They are lost: the index is ORDERLY and CLEAR_STCLEAR, so it is in the TPM's RAM and
    /// unwritten after a TPM reset (TPM 2.0 Part 2 §13.4).
    Volatile,
    /// They stay: the index is in flash. Never ORDERLY: such indices change over a reset.
    Durable,
}

/// What is defined under an index's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defined {
    /// Nothing.
    Nothing,
    /// An index of other size, type, attributes or policy.
    OtherKind,
    /// An index as this program defines it.
    SameKind,
}

/// Bytes in a register. NV space of a physical TPM is small, and 64 bytes fit everywhere.
pub const REGISTER_SIZE: usize = 64;

/// In the range for indices that an owner defines (TCG Registry of Reserved TPM 2.0 Handles
/// and Localities §2.2.2).
const VOLATILE_INDEX: u32 = 0x0180_5652;
const DURABLE_INDEX: u32 = 0x0180_5653;
const COUNTER_INDEX: u32 = 0x0180_5654;

impl Index {
    /// The index's number.
    pub fn number(self) -> u32 {
        match self {
            Self::Register(Retention::Volatile) => VOLATILE_INDEX,
            Self::Register(Retention::Durable) => DURABLE_INDEX,
            Self::Counter => COUNTER_INDEX,
        }
    }

    /// Size of its contents; that of a counter is given (TPM 2.0 Part 2 §13.4).
    pub fn size(self) -> usize {
        match self {
            Self::Register(_) => REGISTER_SIZE,
            Self::Counter => size_of::<u64>(),
        }
    }
}
