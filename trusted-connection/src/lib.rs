//! Both ends of a trusted connection: the service in a VM, which attests itself, and the device,
//! which challenges it and decides.
//!
//! [`attester`] makes evidence with the VM's vRoT; [`service`] answers challenges with it;
//! [`wire`] is how the two ends talk, and
//! [`deadline`] for how long; [`device`] challenges, verifies, appraises and explains.

pub mod attester;
pub mod deadline;
pub mod device;
pub mod service;
pub mod wire;
