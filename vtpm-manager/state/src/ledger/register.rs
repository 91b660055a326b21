//! The rollback anchor: two registers of the physical TPM, and what they hold.

use std::error::Error;
use std::fmt;

use cert_chain::Generation;

/// The two registers, as the physical TPM or a fake holds them.
///
/// A write that was answered is complete; a write that was not may have happened or not. One
/// that happened in part leaves contents that do not authenticate, which nothing accepts.
pub trait AnchorRegisters: fmt::Debug {
    /// What a register holds.
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError>;

    /// Makes a register hold this. Only a defined register of this host can be written.
    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError>;

    /// Defines a register that is absent, and defines anew one that is not this host's: it is
    /// this host's and unwritten afterwards. Does nothing to one that is this host's. Only
    /// `host init` and an operator's recovery may come here.
    fn define(&mut self, register: Register) -> Result<(), RegisterError>;

    /// The newest generation that the TPM's counter has given out; zero before the first.
    fn generation(&mut self) -> Result<Generation, GenerationError>;

    /// A generation above `highest` that this TPM has never given out before, nor ever will
    /// again: whatever becomes of the registers or of the counter itself. Each call wears flash.
    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError>;
}

/// The generation counter could not be used. The TPM may come back: nothing is decided by it.
#[derive(Debug, thiserror::Error)]
#[error("the TPM's generation counter could not be used: is the TPM there and unlocked?")]
pub struct GenerationError {
    /// What the TPM, or the way to it, said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl GenerationError {
    /// The counter could not be used because of this.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// In the TPM's RAM: written with every batch, unwritten after a TPM reset.
    Volatile,
    /// In the TPM's flash: written at checkpoints and at shutdown, survives everything.
    Durable,
}

/// What was found in place of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The TPM has no such index.
    Absent,
    /// The index is there, but does not answer to this host's authorization value or is of
    /// another kind.
    Foreign,
    /// The index is this host's and was not written since it was defined or, if it is the
    /// volatile one, since the TPM's reset.
    Unwritten,
    /// What the index holds.
    Written(Contents),
}

/// The bytes in a register.
pub type Contents = [u8; CONTENTS];

/// Size of a register. NV space of a physical TPM is small, and 64 bytes fit everywhere.
pub const CONTENTS: usize = 64;

/// A register that could not be used. The TPM may come back: nothing is decided by it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {register} rollback register could not be {operation}: is the TPM there and unlocked?"
)]
pub struct RegisterError {
    /// Which register.
    pub register: Register,
    /// What was tried.
    pub operation: Operation,
    /// What the TPM, or the way to it, said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// What was tried on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Defining it.
    Define,
    /// Reading it.
    Read,
    /// Writing it.
    Write,
}

impl Register {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Volatile, Self::Durable];
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volatile => "volatile",
            Self::Durable => "durable",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Define => "defined",
            Self::Read => "read",
            Self::Write => "written",
        })
    }
}

impl AnchorRegisters for Box<dyn AnchorRegisters + Send> {
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError> {
        self.as_mut().read(register)
    }

    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError> {
        self.as_mut().write(register, contents)
    }

    fn define(&mut self, register: Register) -> Result<(), RegisterError> {
        self.as_mut().define(register)
    }

    fn generation(&mut self) -> Result<Generation, GenerationError> {
        self.as_mut().generation()
    }

    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError> {
        self.as_mut().new_generation(highest)
    }
}
