//! A device's own root of trust: its TPM, its identity, and its evidence.

mod attester;
mod enrol;
mod folder;
mod options;

pub use attester::DeviceAttester;
pub use enrol::Enrol;
pub use folder::{IdentityFolder, RootOfTrustError};
pub use options::RootOfTrustOptions;
