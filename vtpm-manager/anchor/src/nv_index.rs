//! Two registers and a counter in NV indices of the physical TPM, which only the holder of their
//! authorization values can write.
//!
//! The registers are ordinary indices of [`REGISTER_SIZE`] bytes that the owner's hierarchy defined.
//! Their authorization values travel to the TPM encrypted, once; afterwards every read and write is
//! an HMAC over it, in both directions. So a program without the values can neither write
//! them nor define another index that passes for one of them, and an answer that was altered on the
//! bus is noticed. The
//! owner can remove them.
//!
//! The counter can be removed like the others, but not put back: an NV counter begins above the
//! highest value that any counter of its TPM ever had (TPM 2.0 Part 3, TPM2_NV_Increment), and
//! `TPM2_Clear` changes nothing about that.

use std::fmt;

use tpm_wire::{Operation, ResponseCode};
use zeroize::Zeroizing;

use super::error::{AnchorError, HardwareError};
use super::hardware::HardwareRoot;
use super::nv::{Defined, Index, NvMemory, REGISTER_SIZE, Retention};
use super::owner::Owner;
use super::queue::Priority;
use super::trust_anchor::TrustAnchor;

/// Authorization value of an NV index.
pub type NvAuth = Zeroizing<[u8; 32]>;

/// A register in the physical TPM. Its methods block for as long as the TPM takes.
#[derive(Clone, Debug)]
pub struct NvRegister(NvIndex);

/// A counter in the physical TPM. Its methods block for as long as the TPM takes.
#[derive(Clone, Debug)]
pub struct NvCounter(NvIndex);

/// What was found in place of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held<T> {
    /// The TPM has no such index.
    Absent,
    /// The index is there, but does not answer to the authorization value, or is of another kind.
    Foreign,
    /// The index is ours and was not written since it was defined or, if it is volatile, since
    /// the TPM's reset.
    Unwritten,
    /// What the index holds.
    Written(T),
}

#[derive(Clone)]
struct NvIndex {
    anchor: TrustAnchor,
    index: Index,
    auth: NvAuth,
}

const READ_COUNTER: Operation = Operation("TPM2_NV_Read");

/// The index was never written (TPM 2.0 Part 2 §6.6.3).
const NV_UNINITIALIZED: ResponseCode = ResponseCode::new(0x14a);
/// Another authorization value, with and without counting the failure.
const AUTH_FAIL: ResponseCode = ResponseCode::new(0x08e);
const BAD_AUTH: ResponseCode = ResponseCode::new(0x0a2);

impl TrustAnchor {
    /// One of the two registers, with its authorization value.
    pub fn register(&self, retention: Retention, auth: NvAuth) -> NvRegister {
        NvRegister(NvIndex {
            anchor: self.clone(),
            index: Index::Register(retention),
            auth,
        })
    }

    /// The counter, with its authorization value.
    pub fn counter(&self, auth: NvAuth) -> NvCounter {
        NvCounter(NvIndex {
            anchor: self.clone(),
            index: Index::Counter,
            auth,
        })
    }
}

impl NvRegister {
    /// What it holds.
    pub fn read(&self) -> Result<Held<[u8; REGISTER_SIZE]>, AnchorError> {
        Ok(match self.0.held()? {
            Held::Absent => Held::Absent,
            Held::Foreign => Held::Foreign,
            Held::Unwritten => Held::Unwritten,
            Held::Written(contents) => contents.try_into().map_or(Held::Foreign, Held::Written),
        })
    }

    /// Writes it. It must be defined, and ours. When this returns, the TPM has it; an error says
    /// nothing about whether it has.
    pub fn write(&self, contents: &[u8; REGISTER_SIZE]) -> Result<(), AnchorError> {
        let (index, auth, contents) = (self.0.index, self.0.auth.clone(), *contents);
        self.0
            .ask(move |memory| memory.write(index, &auth, &contents))
    }

    /// Defines it where it is absent or foreign; what is ours stays as it is.
    pub fn define(&self) -> Result<(), AnchorError> {
        self.0.define()
    }
}

impl NvCounter {
    /// Its value; zero where there is none of ours that was ever incremented.
    pub fn read(&self) -> Result<u64, AnchorError> {
        Ok(match self.0.held()? {
            // Another's counter says nothing; ours will begin above it.
            Held::Absent | Held::Foreign | Held::Unwritten => 0,
            Held::Written(contents) => count(&contents)?,
        })
    }

    /// Increments it until it is above `highest`, after defining it where it is absent or foreign;
    /// returns its new value, which no counter of this TPM ever had. Each increment wears flash.
    pub fn increment_above(&self, highest: u64) -> Result<u64, AnchorError> {
        self.0.define()?;
        let (index, auth) = (self.0.index, self.0.auth.clone());
        // An increment whose answer was lost is made once more: numbers may be left out.
        self.0.ask(move |memory| {
            loop {
                memory.increment(index, &auth)?;
                let reached = count(&memory.read(index, &auth)?)?;
                if reached > highest {
                    return Ok(reached);
                }
            }
        })
    }
}

impl NvIndex {
    fn held(&self) -> Result<Held<Vec<u8>>, AnchorError> {
        let (index, auth) = (self.index, self.auth.clone());
        self.ask(move |memory| {
            match memory.find(index)? {
                Defined::Nothing => return Ok(Held::Absent),
                Defined::OtherKind => return Ok(Held::Foreign),
                Defined::SameKind => {}
            }
            match memory.read(index, &auth) {
                Ok(contents) => Ok(Held::Written(contents)),
                Err(HardwareError::Tpm { code, .. })
                    if code.without_position() == NV_UNINITIALIZED =>
                {
                    Ok(Held::Unwritten)
                }
                Err(HardwareError::Tpm { code, .. })
                    if [AUTH_FAIL, BAD_AUTH].contains(&code.without_position()) =>
                {
                    Ok(Held::Foreign)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Makes the index ours, if it is not.
    fn define(&self) -> Result<(), AnchorError> {
        let index = self.index;
        match self.held()? {
            Held::Unwritten | Held::Written(_) => return Ok(()),
            Held::Foreign => self.ask(move |memory| memory.undefine(index))?,
            Held::Absent => {}
        }
        let auth = self.auth.clone();
        self.ask(move |memory| {
            // A try whose answer was lost may have defined it.
            match memory.find(index)? {
                Defined::Nothing => memory.define(index, &auth),
                Defined::OtherKind | Defined::SameKind => Ok(()),
            }
        })
    }

    /// Waits for the thread that owns the TPM. The store waits for these writes, and guests
    /// wait for the store: they go before work that was ordered ahead.
    fn ask<T: Send + 'static>(
        &self,
        mut request: impl FnMut(&mut dyn NvMemory) -> Result<T, HardwareError> + Send + 'static,
    ) -> Result<T, AnchorError> {
        self.anchor
            .ask_blocking(Priority::Quote, move |owner: &mut Owner| {
                owner.patiently(|root: &mut dyn HardwareRoot| request(root.nv_memory()?))
            })
    }
}

impl fmt::Debug for NvIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NvIndex").field(&self.index).finish()
    }
}

fn count(counter: &[u8]) -> Result<u64, HardwareError> {
    counter
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| HardwareError::Response {
            operation: READ_COUNTER,
            what: "a counter of another size",
        })
}
