//! A connection between a device and a service in a VM: [`wire`] is how the two ends talk, and
//! [`deadline`] for how long; [`crl_files`] has the revocation lists that either may be given. The ends are the crates `vrot-device` and `vrot-service`.

pub mod crl_files;
pub mod deadline;
pub mod wire;
