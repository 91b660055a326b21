//! The TPM itself, behind one narrow trait.
//!
//! Nothing here fails toward the guest: what goes wrong inside becomes a logged TPM response
//! code.

#[cfg(any(test, feature = "testing"))]
pub(crate) mod fake;
mod libtpms;
mod orderly;

pub use libtpms::Libtpms;
pub use swtpm_state::StateKind;

/// A TPM 2.0 that can be switched on and off.
pub trait Engine {
    /// Switches the TPM on, as a platform's reset does (`_TPM_Init`). It does not start it:
    /// firmware sends `TPM2_Startup`.
    fn power_on(&mut self) -> Result<(), EngineError>;

    /// Switches the TPM off. One that is off stays off. One that its guest has not shut down, and
    /// whose volatile state was not given away, is shut down before, which changes its permanent
    /// state.
    fn power_off(&mut self);

    /// Notes that the volatile state of a TPM that is on was given away, beside the permanent state
    /// as it is: this is not to change when the TPM is switched off.
    fn give_away(&mut self);

    /// Notes that the TPM goes on here.
    fn go_on(&mut self);

    /// Whether the TPM is on.
    fn is_on(&self) -> bool;

    /// Carries out a command from this locality; always gives a response.
    fn execute(&mut self, command: &[u8], locality: u8) -> Vec<u8>;

    /// What asks the TPM to give up the command that it is at, from any thread.
    fn canceller(&self) -> Canceller;

    /// The size of the command and response buffers; `wanted` sets it within its bounds.
    fn buffer_size(&mut self, wanted: Option<u32>) -> BufferSize;

    /// Whether a dynamic launch took place since the last reset.
    fn established(&self) -> Result<bool, EngineError>;

    /// Forgets about it; only for localities 3 and 4.
    fn reset_established(&mut self, locality: u8) -> Result<(), EngineError>;

    /// One step of a measurement by the processor (`_TPM_Hash_Start`, `_Data`, `_End`).
    fn hash(&mut self, step: HashStep<'_>) -> Result<(), EngineError>;

    /// A part of the state, or nothing if there is none. Of a TPM that is on: as it is at this
    /// moment. Of one that is off: what it will be switched on with. Asking leaves nothing behind.
    fn state(&mut self, kind: StateKind) -> Result<Option<Vec<u8>>, EngineError>;

    /// Puts a part of the state in place of what is there; only while the TPM is off. A volatile
    /// state is used up when the TPM is next switched on.
    fn set_state(&mut self, kind: StateKind, state: &[u8]) -> Result<(), EngineError>;

    /// Forgets the volatile state that the TPM was to be switched on with.
    fn delete_volatile(&mut self);

    /// What the TPM says of itself in JSON, of the parts that `flags` names
    /// (`TPMLIB_InfoFlags` of `<libtpms/tpm_library.h>`).
    fn info(&self, flags: u64) -> Result<String, EngineError>;

    /// The permanent state, if it has changed since this was last asked.
    fn changed_permanent_state(&mut self) -> Option<Vec<u8>>;
}

/// A step of a dynamic launch's measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashStep<'b> {
    /// `_TPM_Hash_Start`
    Start,
    /// `_TPM_Hash_Data`
    Data(&'b [u8]),
    /// `_TPM_Hash_End`
    End,
}

/// Size of the command and response buffers in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSize {
    /// As it is.
    pub current: u32,
    /// The least it can be.
    pub minimum: u32,
    /// The most it can be.
    pub maximum: u32,
}

/// Asks a TPM to give up the command that it is at; of no consequence if it is at none.
pub type Canceller = fn();

/// Why the TPM did not do something other than a command.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// Only a TPM that is off can do that.
    #[error("the TPM is on: switch it off first")]
    IsOn,
    /// Only a TPM that is on can do that.
    #[error("the TPM is off: switch it on first")]
    IsOff,
    /// The library refused.
    #[error("the TPM library refused with code 0x{code:x}")]
    Refused {
        /// `TPM_RESULT`.
        code: u32,
    },
}

impl EngineError {
    /// As `TPM_RESULT` for the control channel.
    pub fn result(self) -> u32 {
        /// `TPM_BAD_ORDINAL`: the order of commands is wrong.
        const BAD_ORDER: u32 = 0x0a;
        match self {
            Self::IsOn | Self::IsOff => BAD_ORDER,
            Self::Refused { code } => code,
        }
    }
}
