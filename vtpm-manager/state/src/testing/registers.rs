//! The two registers without a TPM: they can be reset, taken away and made to fail at any step.

use std::sync::{Arc, Mutex, PoisonError};

use cert_chain::Generation;

use crate::ledger::register::Operation;
use crate::ledger::{AnchorRegisters, Contents, GenerationError, Reading, Register, RegisterError};

/// Registers in memory. Clones share them, as handles to one TPM do.
#[derive(Clone, Debug)]
pub struct FakeRegisters {
    tpm: Arc<Mutex<Tpm>>,
}

#[derive(Debug)]
struct Tpm {
    volatile: Reading,
    durable: Reading,
    generation: Generation,
    fuse: Option<Fuse>,
    volatile_writes: u64,
    durable_writes: u64,
}

/// Makes one of the writes to come fail.
#[derive(Clone, Copy, Debug)]
pub struct Fuse {
    /// How many writes succeed before.
    pub after: usize,
    /// What becomes of the one that fails.
    pub write: FailedWrite,
}

/// What becomes of a write whose answer does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedWrite {
    /// The register has what was written.
    Happened,
    /// The register has what it had.
    Lost,
}

impl FakeRegisters {
    /// A TPM in which nothing is defined.
    pub fn blank() -> Self {
        Self {
            tpm: Arc::new(Mutex::new(Tpm {
                volatile: Reading::Absent,
                durable: Reading::Absent,
                generation: Generation::default(),
                fuse: None,
                volatile_writes: 0,
                durable_writes: 0,
            })),
        }
    }

    /// Another TPM with the same contents.
    pub fn fork(&self) -> Self {
        let copy = Self::blank();
        for register in [Register::Volatile, Register::Durable] {
            copy.set(register, self.peek(register));
        }
        copy.with(|tpm| tpm.generation = self.with(|tpm| tpm.generation));
        copy
    }

    /// A TPM reset: the volatile register is there, but unwritten.
    pub fn reset(&self) {
        self.with(|tpm| {
            if tpm.volatile != Reading::Absent {
                tpm.volatile = Reading::Unwritten;
            }
        });
    }

    /// Makes a register read like this.
    pub fn set(&self, register: Register, reading: Reading) {
        self.with(|tpm| *tpm.register(register) = reading);
    }

    /// What a register holds.
    pub fn peek(&self, register: Register) -> Reading {
        self.with(|tpm| tpm.register(register).clone())
    }

    /// Makes a write to come fail, or none any more.
    pub fn set_fuse(&self, fuse: Option<Fuse>) {
        self.with(|tpm| tpm.fuse = fuse);
    }

    /// Successful writes of the durable register so far.
    pub fn durable_writes(&self) -> u64 {
        self.with(|tpm| tpm.durable_writes)
    }

    /// Successful writes of the volatile register so far.
    pub fn volatile_writes(&self) -> u64 {
        self.with(|tpm| tpm.volatile_writes)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Tpm) -> T) -> T {
        act(&mut self.tpm.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tpm {
    fn register(&mut self, register: Register) -> &mut Reading {
        match register {
            Register::Volatile => &mut self.volatile,
            Register::Durable => &mut self.durable,
        }
    }

    fn burn(&mut self) -> Option<FailedWrite> {
        let fuse = self.fuse.as_mut()?;
        match fuse.after.checked_sub(1) {
            Some(left) => {
                fuse.after = left;
                None
            }
            None => Some(fuse.write),
        }
    }
}

impl AnchorRegisters for FakeRegisters {
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError> {
        Ok(self.peek(register))
    }

    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError> {
        self.with(|tpm| {
            let failed = |reason: &str| RegisterError {
                register,
                operation: Operation::Write,
                source: reason.into(),
            };
            let burnt = tpm.burn();
            if burnt == Some(FailedWrite::Lost) {
                return Err(failed("the fake lost a write"));
            }
            if matches!(tpm.register(register), Reading::Absent | Reading::Foreign) {
                return Err(failed("there is no such index"));
            }
            *tpm.register(register) = Reading::Written(*contents);
            match register {
                Register::Volatile => tpm.volatile_writes += 1,
                Register::Durable => tpm.durable_writes += 1,
            }
            match burnt {
                Some(_) => Err(failed("the fake lost an answer")),
                None => Ok(()),
            }
        })
    }

    fn define(&mut self, register: Register) -> Result<(), RegisterError> {
        self.with(|tpm| {
            let place = tpm.register(register);
            if matches!(place, Reading::Absent | Reading::Foreign) {
                *place = Reading::Unwritten;
            }
        });
        Ok(())
    }

    fn generation(&mut self) -> Result<Generation, GenerationError> {
        Ok(self.with(|tpm| tpm.generation))
    }

    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError> {
        let next = |generation: Generation| Generation::new(generation.number() + 1);
        Ok(self.with(|tpm| {
            tpm.generation = next(tpm.generation.max(highest));
            tpm.generation
        }))
    }
}
