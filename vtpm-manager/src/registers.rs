//! The rollback registers in the physical TPM: joins the trust anchor with the store's ledger.

use cert_chain::Generation;
use guarded_state::ledger::register::{CONTENTS, Operation};
use guarded_state::ledger::{
    AnchorRegisters, Contents, GenerationError, Reading, Register, RegisterError, RollbackKeys,
};
use trust_anchor::{
    AnchorError, Held, NvCounter, NvRegister, REGISTER_SIZE, Retention, TrustAnchor,
};

/// The two registers and the counter of generations in the physical TPM. Their authorization
/// values are derived from the root secret.
#[derive(Clone, Debug)]
pub struct TpmRegisters {
    volatile: NvRegister,
    durable: NvRegister,
    generation: NvCounter,
}

/// A register fits its index.
const _: () = assert!(CONTENTS == REGISTER_SIZE);

impl TpmRegisters {
    /// Those of the host with these keys.
    pub fn new(anchor: &TrustAnchor, keys: &RollbackKeys) -> Self {
        let register =
            |retention, register| anchor.register(retention, keys.auth(register).clone());
        Self {
            volatile: register(Retention::Volatile, Register::Volatile),
            durable: register(Retention::Durable, Register::Durable),
            generation: anchor.counter(keys.generation_auth().clone()),
        }
    }

    fn index(&self, register: Register) -> &NvRegister {
        match register {
            Register::Volatile => &self.volatile,
            Register::Durable => &self.durable,
        }
    }
}

impl AnchorRegisters for TpmRegisters {
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError> {
        let held = self.index(register).read();
        Ok(match held.map_err(failed(register, Operation::Read))? {
            Held::Absent => Reading::Absent,
            Held::Foreign => Reading::Foreign,
            Held::Unwritten => Reading::Unwritten,
            Held::Written(contents) => Reading::Written(contents),
        })
    }

    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError> {
        let written = self.index(register).write(contents);
        written.map_err(failed(register, Operation::Write))
    }

    fn define(&mut self, register: Register) -> Result<(), RegisterError> {
        let defined = self.index(register).define();
        defined.map_err(failed(register, Operation::Define))
    }

    fn generation(&mut self) -> Result<Generation, GenerationError> {
        self.generation
            .read()
            .map(Generation::new)
            .map_err(generation_failed)
    }

    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError> {
        self.generation
            .increment_above(highest.number())
            .map(Generation::new)
            .map_err(generation_failed)
    }
}

fn failed(register: Register, operation: Operation) -> impl FnOnce(AnchorError) -> RegisterError {
    move |source| RegisterError {
        register,
        operation,
        source: source.into(),
    }
}

fn generation_failed(source: AnchorError) -> GenerationError {
    GenerationError {
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;
    use test_support::Swtpm;
    use trust_anchor::AnchorConfig;

    #[test]
    fn each_register_is_its_own_index_and_an_error_names_it() -> Result<()> {
        let tpm = Swtpm::blank()?;
        tpm.tool("tpm2_startup -c")?;
        let anchor = TrustAnchor::start(&AnchorConfig::new(
            tpm.tcti().parse()?,
            tpm.path("anchor.json"),
        ))?;
        let mut registers = TpmRegisters::new(&anchor, &RollbackKeys::derive(&[7; 32]));
        for register in Register::BOTH {
            let error = registers.write(register, &[1; CONTENTS]).err();
            let text = error.context("written without being defined")?.to_string();
            assert!(text.contains(&register.to_string()), "{text}");
            assert_eq!(registers.read(register)?, Reading::Absent);
            registers.define(register)?;
            assert_eq!(registers.read(register)?, Reading::Unwritten);
        }
        registers.write(Register::Volatile, &[1; CONTENTS])?;
        registers.write(Register::Durable, &[2; CONTENTS])?;
        drop((registers, anchor));

        tpm.switch_off()?;
        tpm.switch_on()?;
        let anchor = TrustAnchor::start(&AnchorConfig::new(
            tpm.tcti().parse()?,
            tpm.path("anchor.json"),
        ))?;
        let mut registers = TpmRegisters::new(&anchor, &RollbackKeys::derive(&[7; 32]));
        assert_eq!(registers.read(Register::Volatile)?, Reading::Unwritten);
        assert_eq!(
            registers.read(Register::Durable)?,
            Reading::Written([2; CONTENTS])
        );
        let newest = registers.new_generation(Generation::new(3))?;
        assert!(newest > Generation::new(3));
        assert_eq!(registers.generation()?, newest);

        // Another root secret has other authorization values.
        let mut others = TpmRegisters::new(&anchor, &RollbackKeys::derive(&[8; 32]));
        assert_eq!(others.read(Register::Durable)?, Reading::Foreign);
        assert_eq!(others.generation()?, Generation::default());
        Ok(())
    }
}
