//! What a VMM carries when it moves or saves a VM: the vRoT's state, in its own format.

use swtpm_state::{BlobKeys, FormatError, StateBlob, read_blob, write_blob};
use zeroize::Zeroizing;

use crate::engine::StateKind;

/// Packs state for a VMM and unpacks what a VMM brings.
pub trait StateExport {
    /// What the VMM is given of a part of the state, which it may want `decrypted` from the key of
    /// stored states. `permanent` is the permanent state that the vRoT has at that moment.
    fn pack(
        &mut self,
        kind: StateKind,
        state: Vec<u8>,
        permanent: &[u8],
        decrypted: bool,
    ) -> Result<Package, NotCarried>;

    /// What is to become the vRoT's state; nothing, if it is that already. The VMM may say that what it
    /// carried is `encrypted` under the key of stored states.
    fn unpack(
        &self,
        kind: StateKind,
        carried: Vec<u8>,
        encrypted: bool,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, NotCarried>;

    /// Which keys are in use (`CMD_GET_CONFIG`): bit 0 for stored states, bit 1 for what a VMM carries.
    fn keys_in_use(&self) -> u32 {
        0
    }
}

/// A part of the state on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Package {
    /// In the form of swtpm, for any TPM emulator that has the same keys.
    Portable(StateBlob),
    /// Of use to the same vRoT alone.
    Sealed(Vec<u8>),
}

/// Why a VMM gets no state, or why what it brought is refused.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotCarried {
    /// It does not open.
    #[error("it was altered, or belongs to another vRoT or generation")]
    Foreign,
    /// The TPM went on since.
    #[error("it was of use once, until the VM went on: a VM's old state does not come back")]
    Outdated,
    /// What it has to be recognized by is not on stable storage.
    #[error(
        "the manager does not make the vRoT's state durable now; the VM can go on, and be saved \
         when it does"
    )]
    NotDurable,
    /// It could not be sealed.
    #[error("it could not be sealed")]
    NotSealed,
    /// It is not in swtpm's form, or under another key.
    #[error("{0}")]
    Format(#[from] FormatError),
}

impl NotCarried {
    /// As `TPM_RESULT` for the control channel: where it is about swtpm's form, as swtpm has it.
    pub(super) fn result(self) -> u32 {
        const BAD_PARAMETER: u32 = 0x03;
        const FAIL: u32 = 0x09;
        const KEY_NOT_FOUND: u32 = 0x0d;
        const DECRYPT_ERROR: u32 = 0x21;
        const BAD_KEY_PROPERTY: u32 = 0x28;
        const BAD_DATA_SIZE: u32 = 0x2b;
        const BAD_VERSION: u32 = 0x2e;
        let Self::Format(error) = self else {
            return FAIL;
        };
        match error {
            FormatError::NoHeader { .. } | FormatError::Length { .. } => BAD_PARAMETER,
            FormatError::Version { .. } => BAD_VERSION,
            FormatError::HeaderSize { .. } => BAD_DATA_SIZE,
            FormatError::KeyMissing { .. } => KEY_NOT_FOUND,
            FormatError::KeySize { .. } => BAD_KEY_PROPERTY,
            FormatError::NotAuthentic { .. } => DECRYPT_ERROR,
            _ => FAIL,
        }
    }
}

/// Gives and takes state in swtpm's form, under these keys: a vRoT without a manager trusts its VMM, as
/// the state folder is the VMM's user's anyway.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwtpmExport<'k>(pub BlobKeys<'k>);

impl StateExport for SwtpmExport<'_> {
    fn pack(
        &mut self,
        _: StateKind,
        state: Vec<u8>,
        _: &[u8],
        decrypted: bool,
    ) -> Result<Package, NotCarried> {
        let state = Zeroizing::new(state);
        Ok(Package::Portable(write_blob(&state, self.0, decrypted)?))
    }

    fn unpack(
        &self,
        _: StateKind,
        carried: Vec<u8>,
        encrypted: bool,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, NotCarried> {
        let carried = Zeroizing::new(carried);
        Ok(Some(read_blob(&carried, self.0, encrypted)?))
    }

    fn keys_in_use(&self) -> u32 {
        let BlobKeys { state, migration } = self.0;
        u32::from(state.is_some()) | u32::from(migration.is_some()) << 1
    }
}
