//! A connection between a device and a service in a VM: [`wire`] is how the two ends talk, and
//! [`deadline`] for how long; [`policy_files`] and [`crl_files`] read what either may be given. The ends are
//! the crates `vrot-device` and `vrot-service`.

pub mod deadline;
pub mod policy_files;
pub mod wire;

pub use crl_files;
