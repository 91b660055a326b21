//! What tests of several crates stand on: programs that run beside a test and end with it, programs
//! that run to their end, waiting for a condition, and swtpm as the physical TPM.
//!
//! It knows none of the crates that it serves, so that each of them can use it.

pub mod deadline;
pub mod descriptors;
pub mod process;
pub mod programs;
pub mod run_folder;
pub mod sockets;
pub mod software_tpm;
mod swtpm;
pub mod time_authority;
pub mod tool;
pub mod tpm_commands;
pub mod virtio_tpm;

pub use swtpm::Swtpm;
