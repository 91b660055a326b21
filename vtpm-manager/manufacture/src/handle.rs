//! What the vRoT has loaded, or had.

/// A transient object or session of the vRoT.
#[derive(Clone, Copy)]
pub(super) struct Handle(pub(super) u32);

/// A session of the guest outside its slot: a `TPMS_CONTEXT`.
pub(super) struct SavedSession(pub(super) Vec<u8>);
