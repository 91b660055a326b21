//! The rollback registers and the counter of generations: three NV indices of the physical TPM.
//!
//! The registers are ordinary indices of [`CONTENTS`] bytes that the owner's hierarchy defined. Their
//! authorization values are derived from the root secret and travel to the TPM encrypted, once;
//! afterwards every read and write is an HMAC over it, in both directions. So nobody else can
//! write them, nobody can define another index that passes for one of them, and an answer that
//! was altered on the bus is noticed. The owner can remove them, which refuses the next start.
//!
//! The volatile index is ORDERLY and CLEAR_STCLEAR: it lives in the TPM's RAM and is unwritten
//! after a TPM reset (TPM 2.0 Part 2 §13.4). The durable index is never ORDERLY: such indices
//! change over a reset.
//!
//! The counter is incremented by recoveries alone. It can be removed like the others, but not
//! put back: an NV counter begins above the highest value that any counter of its TPM ever had
//! (TPM 2.0 Part 3, TPM2_NV_Increment), and `TPM2_Clear` changes nothing about that.

use cert_chain::Generation;
use tpm_wire::ResponseCode;
use zeroize::Zeroizing;

use super::error::{AnchorError, HardwareError};
use super::hardware::HardwareRoot;
use super::queue::Priority;
use super::{Owner, TrustAnchor};
use crate::rollback::register::{CONTENTS, Operation};
use crate::rollback::{
    AnchorRegisters, Contents, GenerationError, Reading, Register, RegisterError, RollbackKeys,
};

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

    /// Adds one to the index, which is a counter.
    fn increment(&mut self, index: Index, auth: &[u8; 32]) -> Result<(), HardwareError>;
}

/// An NV index of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Index {
    /// For a register.
    Register(Register),
    /// The counter of generations.
    Generation,
}

/// What an index holds.
enum Held {
    Absent,
    Foreign,
    Unwritten,
    Written(Vec<u8>),
}

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
const GENERATION_INDEX: u32 = 0x0180_5654;

const READ_COUNTER: tpm_wire::Operation = tpm_wire::Operation("TPM2_NV_Read");

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
        match self {
            Self::Register(Register::Volatile) => VOLATILE_INDEX,
            Self::Register(Register::Durable) => DURABLE_INDEX,
            Self::Generation => GENERATION_INDEX,
        }
    }

    /// Size of its contents; that of a counter is given (TPM 2.0 Part 2 §13.4).
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Register(_) => CONTENTS,
            Self::Generation => size_of::<u64>(),
        }
    }
}

impl AnchorRegisters for TpmRegisters {
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError> {
        let held = self
            .held(Index::Register(register))
            .map_err(failed(register, Operation::Read))?;
        Ok(match held {
            Held::Absent => Reading::Absent,
            Held::Foreign => Reading::Foreign,
            Held::Unwritten => Reading::Unwritten,
            Held::Written(contents) => {
                Contents::try_from(contents).map_or(Reading::Foreign, Reading::Written)
            }
        })
    }

    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError> {
        let index = Index::Register(register);
        let auth = self.auth(index);
        let contents = *contents;
        self.ask(move |memory| memory.write(index, &auth, &contents))
            .map_err(failed(register, Operation::Write))
    }

    fn define(&mut self, register: Register) -> Result<(), RegisterError> {
        self.claim(Index::Register(register))
            .map_err(failed(register, Operation::Define))
    }

    fn generation(&mut self) -> Result<Generation, GenerationError> {
        let held = self.held(Index::Generation).map_err(GenerationError::of)?;
        Ok(match held {
            // Another's counter says nothing; ours will begin above it.
            Held::Absent | Held::Foreign | Held::Unwritten => Generation::default(),
            Held::Written(contents) => generation(&contents).map_err(GenerationError::of)?,
        })
    }

    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError> {
        self.claim(Index::Generation).map_err(GenerationError::of)?;
        let auth = self.auth(Index::Generation);
        // An increment whose answer was lost is made once more: numbers may be left out.
        self.ask(move |memory| {
            loop {
                memory.increment(Index::Generation, &auth)?;
                let reached = generation(&memory.read(Index::Generation, &auth)?)?;
                if reached > highest {
                    return Ok(reached);
                }
            }
        })
        .map_err(GenerationError::of)
    }
}

impl TpmRegisters {
    fn auth(&self, index: Index) -> Zeroizing<[u8; 32]> {
        match index {
            Index::Register(register) => self.keys.auth(register).clone(),
            Index::Generation => self.keys.generation_auth().clone(),
        }
    }

    fn held(&self, index: Index) -> Result<Held, AnchorError> {
        let auth = self.auth(index);
        self.ask(move |memory| {
            match memory.find(index)? {
                Defined::Nothing => return Ok(Held::Absent),
                Defined::OtherKind => return Ok(Held::Foreign),
                Defined::SameKind => {}
            }
            match memory.read(index, &auth) {
                Ok(contents) => Ok(Held::Written(contents)),
                Err(HardwareError::Tpm { code, .. })
                    if code.without_position() == ResponseCode::NV_UNINITIALIZED =>
                {
                    Ok(Held::Unwritten)
                }
                Err(HardwareError::Tpm { code, .. })
                    // Another authorization value, with and without counting the failure.
                    if [ResponseCode::AUTH_FAIL, ResponseCode::BAD_AUTH]
                        .contains(&code.without_position()) =>
                {
                    Ok(Held::Foreign)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Makes the index this host's, if it is not.
    fn claim(&self, index: Index) -> Result<(), AnchorError> {
        match self.held(index)? {
            Held::Unwritten | Held::Written(_) => return Ok(()),
            Held::Foreign => self.ask(move |memory| memory.undefine(index))?,
            Held::Absent => {}
        }
        let auth = self.auth(index);
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

fn failed(register: Register, operation: Operation) -> impl FnOnce(AnchorError) -> RegisterError {
    move |source| RegisterError {
        register,
        operation,
        source: source.into(),
    }
}

impl GenerationError {
    fn of(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
        }
    }
}

fn generation(counter: &[u8]) -> Result<Generation, HardwareError> {
    match <[u8; 8]>::try_from(counter) {
        Ok(bytes) => Ok(Generation::new(u64::from_be_bytes(bytes))),
        Err(_) => Err(HardwareError::Response {
            operation: READ_COUNTER,
            what: "a counter of another size",
        }),
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

    fn new_generation(host: &Host, highest: u64) -> Result<u64> {
        let generation = host.registers()?.new_generation(Generation::new(highest))?;
        assert_eq!(host.registers()?.generation()?, generation);
        Ok(generation.number())
    }

    #[test]
    fn no_generation_comes_twice_whatever_becomes_of_the_counter() -> Result<()> {
        let host = Host::new()?;
        assert_eq!(host.registers()?.generation()?, Generation::default());
        let undefine = format!("tpm2_nvundefine {GENERATION_INDEX:#x}");
        let mut newest = 0;
        for (becomes, highest) in [
            ("", 1),
            ("", 0),
            (undefine.as_str(), 0),
            // What the store knows may be ahead of a counter, which catches up.
            ("", 20),
            ("tpm2_clear -c p", 0),
            (undefine.as_str(), 1),
        ] {
            if !becomes.is_empty() {
                host.tpm.tool(becomes)?;
            }
            let generation = new_generation(&host, highest)?;
            assert!(generation > newest.max(highest), "{becomes}: {generation}");
            newest = generation;
            host.reset()?;
        }
        Ok(())
    }

    #[test]
    fn a_counter_of_somebody_else_is_replaced_and_gives_no_old_number() -> Result<()> {
        let host = Host::new()?;
        let newest = new_generation(&host, 5)?;
        for attributes in ["authread|authwrite|no_da|nt=counter", ATTRIBUTES] {
            host.tpm
                .tool(&format!("tpm2_nvundefine {GENERATION_INDEX:#x}"))?;
            host.tpm.tool(&format!(
                "tpm2_nvdefine {GENERATION_INDEX:#x} -C o -s 8 -p guess -a {attributes}"
            ))?;
            assert_eq!(host.registers()?.generation()?, Generation::default());
        }
        assert!(new_generation(&host, 0)? > newest);
        host.tpm.tool_fails(&format!(
            "tpm2_nvincrement {GENERATION_INDEX:#x} -C {GENERATION_INDEX:#x}"
        ))?;
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
