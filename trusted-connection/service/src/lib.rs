//! The service in a VM: [`attester`] makes evidence with the VM's vRoT and its host, [`service`]
//! answers challenges with it.

pub mod attester;
pub mod devices;
pub mod service;
