//! The service in a VM: [`attester`] makes evidence with the VM's vRoT and its host. [`service`] answers
//! challenges in the clear with it; [`proxy`] puts attested connections before a TCP service, and
//! [`devices`] says whom it lets connect. For other programs in the VM, [`evidence_file`] answers one nonce
//! [`identity`] says who the VM is, and [`sealing`] keeps data for this VM alone; [`signing_data`] signs
//! data for others with the [`data_key`].

pub mod attester;
pub mod command_line;
pub mod data_counter;
pub mod data_key;
pub mod devices;
pub mod evidence_file;
pub mod identity;
pub mod proxy;
mod proxy_header;
pub mod sealing;
pub mod service;
pub mod signing_data;
pub mod tls_identity;
pub mod tls_key;
pub mod vm_attester;
