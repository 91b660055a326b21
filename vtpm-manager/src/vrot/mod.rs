//! A vRoT as the manager knows it: what it is, and where in its life.

mod error;
mod folder;
mod identity;
mod lifecycle;
mod record;

pub use error::RecordError;
pub use folder::{FileIdentity, FolderBinding};
pub use identity::{Identity, Pending};
pub use lifecycle::{Lifecycle, LifecycleError, StopCause};
pub use record::{
    LostState, Origin, Owner, StoredVrot, Tombstone, VrotName, VrotNameError, VrotRecord,
};

#[cfg(test)]
pub(crate) use record::tests::record as example;
