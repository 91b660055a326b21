//! A connection between a device and a service in a VM: [`wire`] is how the two ends talk, and
//! [`deadline`] for how long. The ends are the crates `vrot-device` and `vrot-service`.

pub mod deadline;
pub mod wire;
