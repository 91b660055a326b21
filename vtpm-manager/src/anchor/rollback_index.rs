//! The rollback registers: two NV indices of the physical TPM.
//!
//! Both are ordinary indices of [`CONTENTS`] bytes that the owner's hierarchy defined. Their
//! authorization values are derived from the root secret and travel to the TPM encrypted, once;
//! afterwards every read and write is an HMAC over it, in both directions. So nobody else can
//! write them, nobody can define another index that passes for one of them, and an answer that
//! was altered on the bus is noticed. The owner can remove them, which refuses the next start.
//!
//! The volatile index is ORDERLY and CLEAR_STCLEAR: it lives in the TPM's RAM and is unwritten
//! after a TPM reset (TPM 2.0 Part 2 §13.4). The durable index is never ORDERLY: such indices
//! change over a reset.

use std::sync::mpsc;

use super::error::{AnchorError, HardwareError};
use super::hardware::HardwareRoot;
use super::queue::Priority;
use super::response_code::ResponseCode;
use super::{Owner, TrustAnchor};
use crate::rollback::register::{CONTENTS, Operation};
use crate::rollback::{AnchorRegisters, Contents, Reading, Register, RegisterError, RollbackKeys};

/// The two registers in the physical TPM.
#[derive(Clone, Debug)]
pub struct TpmRegisters {
    anchor: TrustAnchor,
    keys: RollbackKeys,
}

/// NV memory as the registers need it. The authorization value is that of the index.
pub(crate) trait NvMemory {
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
        contents: &Contents,
    ) -> Result<(), HardwareError>;
}

/// An NV index for a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Index(pub(crate) Register);

/// What is defined under an index's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defined {
    /// Nothing.
    Nothing,
    /// An index of other size, type, attributes or policy.
    OtherKind,
    /// An index as this program defines it.
    SameKind,
}

/// In the range for indices that an owner defines (TCG Registry of Reserved TPM 2.0 Handles
/// and Localities §2.2.2).
const VOLATILE_INDEX: u32 = 0x0180_5652;
const DURABLE_INDEX: u32 = 0x0180_5653;

/// Nobody has written the index (TPM 2.0 Part 2 §6.6.3).
const NV_UNINITIALIZED: ResponseCode = ResponseCode::new(0x14a);
/// Another authorization value, with and without counting the failure.
const AUTH_FAIL: ResponseCode = ResponseCode::new(0x08e);
const BAD_AUTH: ResponseCode = ResponseCode::new(0x0a2);

impl TrustAnchor {
    /// The rollback registers of this host.
    pub fn rollback_registers(&self, keys: RollbackKeys) -> TpmRegisters {
        TpmRegisters {
            anchor: self.clone(),
            keys,
        }
    }
}

impl Index {
    /// The index's number.
    pub(crate) fn number(self) -> u32 {
        match self.0 {
            Register::Volatile => VOLATILE_INDEX,
            Register::Durable => DURABLE_INDEX,
        }
    }

    /// Size of its contents.
    pub(crate) const SIZE: usize = CONTENTS;
}

impl AnchorRegisters for TpmRegisters {
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError> {
        let auth = self.keys.auth(register).clone();
        self.ask(register, Operation::Read, move |memory| {
            let index = Index(register);
            match memory.find(index)? {
                Defined::Nothing => return Ok(Reading::Absent),
                Defined::OtherKind => return Ok(Reading::Foreign),
                Defined::SameKind => {}
            }
            match memory.read(index, &auth) {
                Ok(contents) => {
                    Ok(Contents::try_from(contents).map_or(Reading::Foreign, Reading::Written))
                }
                Err(HardwareError::Tpm { code, .. })
                    if code.without_position() == NV_UNINITIALIZED =>
                {
                    Ok(Reading::Unwritten)
                }
                Err(HardwareError::Tpm { code, .. })
                    if [AUTH_FAIL, BAD_AUTH].contains(&code.without_position()) =>
                {
                    Ok(Reading::Foreign)
                }
                Err(error) => Err(error),
            }
        })
    }

    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError> {
        let auth = self.keys.auth(register).clone();
        let contents = *contents;
        self.ask(register, Operation::Write, move |memory| {
            memory.write(Index(register), &auth, &contents)
        })
    }

    fn define(&mut self, register: Register) -> Result<(), RegisterError> {
        let index = Index(register);
        match self.read(register)? {
            Reading::Unwritten | Reading::Written(_) => return Ok(()),
            Reading::Foreign => {
                self.ask(register, Operation::Define, move |memory| {
                    memory.undefine(index)
                })?;
            }
            Reading::Absent => {}
        }
        let auth = self.keys.auth(register).clone();
        self.ask(register, Operation::Define, move |memory| {
            // A try whose answer was lost may have defined it.
            match memory.find(index)? {
                Defined::Nothing => memory.define(index, &auth),
                Defined::OtherKind | Defined::SameKind => Ok(()),
            }
        })
    }
}

impl TpmRegisters {
    /// Waits for the thread that owns the TPM. The store waits for these writes, and guests
    /// wait for the store: they go before work that was ordered ahead.
    fn ask<T: Send + 'static>(
        &self,
        register: Register,
        operation: Operation,
        mut request: impl FnMut(&mut dyn NvMemory) -> Result<T, HardwareError> + Send + 'static,
    ) -> Result<T, RegisterError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let job = move |owner: &mut Owner| {
            let done = owner.patiently(|root: &mut dyn HardwareRoot| request(root.nv_memory()?));
            drop(answer.send(done));
        };
        (self.anchor.0.queue)
            .push(Priority::Quote, Box::new(job))
            .and_then(|()| answered.recv().map_err(|_| AnchorError::Stopped)?)
            .map_err(|source| RegisterError {
                register,
                operation,
                source: source.into(),
            })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::anchor::swtpm::Swtpm;

    /// A TPM that its firmware started, and the registers as one manager after the other
    /// opens them.
    struct Host {
        tpm: Swtpm,
    }

    const ATTRIBUTES: &str = "ownerread|ownerwrite|authread|authwrite|no_da";

    impl Host {
        fn new() -> Result<Self> {
            let tpm = Swtpm::blank()?;
            tpm.tool("tpm2_startup -c")?;
            Ok(Self { tpm })
        }

        fn registers(&self) -> Result<TpmRegisters> {
            self.registers_of(&[7; 32])
        }

        fn registers_of(&self, root_secret: &[u8]) -> Result<TpmRegisters> {
            let anchor = TrustAnchor::start(&self.tpm.config())?;
            Ok(anchor.rollback_registers(RollbackKeys::derive(root_secret)))
        }

        /// The machine loses power and comes back.
        fn reset(&self) -> Result<()> {
            self.tpm.switch_off()?;
            self.tpm.switch_on()
        }

        /// What the TPM keeps where flash would be.
        fn flash(&self) -> Result<Vec<u8>> {
            self.tpm.read("state/tpm2-00.permall")
        }
    }

    fn both(registers: &mut TpmRegisters) -> Result<[Reading; 2]> {
        Ok([
            registers.read(Register::Volatile)?,
            registers.read(Register::Durable)?,
        ])
    }

    fn defined(host: &Host) -> Result<TpmRegisters> {
        let mut registers = host.registers()?;
        for register in Register::BOTH {
            registers.define(register)?;
        }
        Ok(registers)
    }

    #[test]
    fn a_tpm_reset_empties_the_volatile_register_and_leaves_the_durable_one() -> Result<()> {
        let host = Host::new()?;
        assert_eq!(
            both(&mut host.registers()?)?,
            [Reading::Absent, Reading::Absent]
        );
        let mut registers = defined(&host)?;
        assert_eq!(
            both(&mut registers)?,
            [Reading::Unwritten, Reading::Unwritten]
        );
        registers.write(Register::Volatile, &[1; CONTENTS])?;
        registers.write(Register::Durable, &[2; CONTENTS])?;
        registers.write(Register::Volatile, &[3; CONTENTS])?;
        drop(registers);

        // Another manager process finds both.
        let written = [3, 2].map(|byte| Reading::Written([byte; CONTENTS]));
        assert_eq!(both(&mut host.registers()?)?, written);

        host.reset()?;
        let after = [Reading::Unwritten, Reading::Written([2; CONTENTS])];
        assert_eq!(both(&mut host.registers()?)?, after);
        let mut registers = host.registers()?;
        registers.write(Register::Volatile, &[4; CONTENTS])?;
        let again = [4, 2].map(|byte| Reading::Written([byte; CONTENTS]));
        assert_eq!(both(&mut registers)?, again);
        Ok(())
    }

    #[test]
    fn a_tpm_that_went_away_during_a_write_is_written_when_it_is_back() -> Result<()> {
        let host = Host::new()?;
        let mut registers = defined(&host)?;
        for register in Register::BOTH {
            registers.write(register, &[1; CONTENTS])?;
        }
        host.tpm.switch_off()?;
        for _ in 0..2 {
            assert!(registers.write(Register::Durable, &[2; CONTENTS]).is_err());
        }
        host.tpm.switch_on()?;
        registers.write(Register::Durable, &[2; CONTENTS])?;
        let after = [Reading::Unwritten, Reading::Written([2; CONTENTS])];
        assert_eq!(both(&mut registers)?, after);
        Ok(())
    }

    #[test]
    fn only_the_durable_register_wears_flash() -> Result<()> {
        let host = Host::new()?;
        let mut registers = defined(&host)?;
        for register in Register::BOTH {
            registers.write(register, &[1; CONTENTS])?;
        }
        let before = host.flash()?;
        for byte in 2..12 {
            registers.write(Register::Volatile, &[byte; CONTENTS])?;
        }
        assert!(host.flash()? == before, "a volatile write reached flash");
        registers.write(Register::Durable, &[2; CONTENTS])?;
        assert!(host.flash()? != before, "a durable write did not");
        Ok(())
    }

    #[test]
    fn defining_again_changes_nothing() -> Result<()> {
        let host = Host::new()?;
        let mut registers = defined(&host)?;
        registers.write(Register::Volatile, &[1; CONTENTS])?;
        registers.write(Register::Durable, &[2; CONTENTS])?;
        drop(registers);
        let written = [1, 2].map(|byte| Reading::Written([byte; CONTENTS]));
        assert_eq!(both(&mut defined(&host)?)?, written);
        Ok(())
    }

    #[test]
    fn a_removed_index_is_absent_and_cannot_be_written() -> Result<()> {
        let host = Host::new()?;
        drop(defined(&host)?);
        host.tpm
            .tool(&format!("tpm2_nvundefine {DURABLE_INDEX:#x}"))?;
        let mut registers = host.registers()?;
        let after = [Reading::Unwritten, Reading::Absent];
        assert_eq!(both(&mut registers)?, after);
        let error = registers.write(Register::Durable, &[1; CONTENTS]);
        let text = error.map_err(|error| error.to_string());
        assert!(text.is_err_and(|text| text.contains("durable")));
        Ok(())
    }

    #[test]
    fn nobody_else_reads_writes_or_imitates_an_index() -> Result<()> {
        let host = Host::new()?;
        drop(defined(&host)?);
        host.tpm.write("contents", [0; CONTENTS])?;
        for number in [VOLATILE_INDEX, DURABLE_INDEX] {
            for line in [
                format!("tpm2_nvwrite {number:#x} -C o -i contents"),
                format!("tpm2_nvwrite {number:#x} -C {number:#x} -i contents"),
                format!("tpm2_nvread {number:#x} -C o"),
                format!("tpm2_nvread {number:#x} -C {number:#x}"),
            ] {
                host.tpm.tool_fails(&line)?;
            }
        }
        // The owner removes them and defines them anew, as they were, with a value of his own.
        for (number, attributes) in [
            (
                VOLATILE_INDEX,
                "authread|authwrite|no_da|orderly|clear_stclear",
            ),
            (DURABLE_INDEX, "authread|authwrite|no_da"),
        ] {
            host.tpm.tool(&format!("tpm2_nvundefine {number:#x}"))?;
            host.tpm.tool(&format!(
                "tpm2_nvdefine {number:#x} -C o -s 64 -p guess -a {attributes}"
            ))?;
            host.tpm.tool(&format!(
                "tpm2_nvwrite {number:#x} -C {number:#x} -P guess -i contents"
            ))?;
        }
        let mut registers = host.registers()?;
        assert_eq!(both(&mut registers)?, [Reading::Foreign, Reading::Foreign]);

        // A recovery takes them back.
        for register in Register::BOTH {
            registers.define(register)?;
        }
        assert_eq!(
            both(&mut registers)?,
            [Reading::Unwritten, Reading::Unwritten]
        );
        registers.write(Register::Durable, &[5; CONTENTS])?;
        drop(registers);
        let mut other = host.registers_of(&[8; 32])?;
        assert_eq!(both(&mut other)?, [Reading::Foreign, Reading::Foreign]);
        Ok(())
    }

    #[test]
    fn an_index_of_another_kind_is_foreign() -> Result<()> {
        let host = Host::new()?;
        host.tpm.tool(&format!(
            "tpm2_nvdefine {DURABLE_INDEX:#x} -C o -s 64 -a {ATTRIBUTES}"
        ))?;
        host.tpm.tool(&format!(
            "tpm2_nvdefine {VOLATILE_INDEX:#x} -C o -s 32 -a authread|authwrite"
        ))?;
        let found = both(&mut host.registers()?)?;
        assert_eq!(found, [Reading::Foreign, Reading::Foreign]);
        Ok(())
    }

    /// Not a measurement, but a budget: on this machine a write is a matter of a millisecond.
    #[test]
    fn a_hundred_batches_leave_no_session_behind() -> Result<()> {
        let host = Host::new()?;
        let mut registers = defined(&host)?;
        for byte in 0..100 {
            registers.write(Register::Volatile, &[byte; CONTENTS])?;
        }
        drop(registers);
        for kind in ["handles-loaded-session", "handles-transient"] {
            let held = host.tpm.tool(&format!("tpm2_getcap {kind}"))?;
            assert_eq!(held.trim(), "", "{kind}");
        }
        Ok(())
    }
}
