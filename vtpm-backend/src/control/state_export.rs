//! What a VMM carries when it moves or saves a VM: the vRoT's state, in its own format.

use zeroize::Zeroizing;

use crate::engine::StateKind;

/// Packs state for a VMM and unpacks what a VMM brings.
pub trait StateExport {
    /// What the VMM is given of a part of the state. `permanent` is the permanent state that the
    /// vRoT has at that moment.
    fn pack(
        &mut self,
        kind: StateKind,
        state: Vec<u8>,
        permanent: &[u8],
    ) -> Result<Package, NotCarried>;

    /// What is to become the vRoT's state; nothing, if it is that already.
    fn unpack(
        &self,
        kind: StateKind,
        carried: Vec<u8>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, NotCarried>;
}

/// A part of the state on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Package {
    /// As the TPM wrote it.
    Plain(Vec<u8>),
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
}

/// Gives and takes everything as it is: a vRoT without a manager trusts its VMM, as the state
/// folder is the VMM's user's anyway.
#[derive(Clone, Copy, Debug)]
pub struct PlainExport;

impl StateExport for PlainExport {
    fn pack(&mut self, _: StateKind, state: Vec<u8>, _: &[u8]) -> Result<Package, NotCarried> {
        Ok(Package::Plain(state))
    }

    fn unpack(
        &self,
        _: StateKind,
        carried: Vec<u8>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, NotCarried> {
        Ok(Some(carried.into()))
    }
}
