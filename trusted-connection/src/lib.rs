//! A connection between a device and a service in a VM: [`wire`] is how the two ends talk, and
//! [`deadline`] for how long; [`policy_files`] and [`crl_files`] read what either may be given, and
//! [`settings_file`] finds what is said once for all calls. The ends are the crates `vrot-device` and `vrot-service`.

pub mod deadline;
pub mod policy_files;
pub mod settings_file;
pub mod wire;

pub use crl_files;
