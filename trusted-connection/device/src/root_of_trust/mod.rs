//! A device's own root of trust: its TPM, its identity, its evidence, and data that it
//! signs.

mod attester;
mod enrol;
mod evidence;
mod folder;
mod options;
mod signer;

pub use attester::DeviceAttester;
pub use enrol::Enrol;
pub use folder::{IdentityFolder, RootOfTrustError};
pub use options::RootOfTrustOptions;
pub use signer::DeviceSigner;
