//! A vRoT as the manager knows it: what it is, and where in its life.

mod lifecycle;
mod record;

pub use lifecycle::{Lifecycle, LifecycleError, StopCause};
pub use record::{
    Identity, LostState, Owner, Pending, RecordError, StoredVrot, Tombstone, VrotName,
    VrotNameError, VrotRecord,
};

#[cfg(test)]
pub(crate) use record::tests::record as example;
