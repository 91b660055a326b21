//! One virtualized root of trust (vRoT): a TPM 2.0 in a process of its own.
//!
//! [`engine`] is the TPM itself (libtpms); [`vendor`] answers the commands that reach the host
//! through it; [`control`] speaks the TPM emulator protocol of QEMU, cloud-hypervisor and
//! libvirt; [`message`] is what passes between a backend and its manager.

pub mod command;
pub mod control;
pub mod engine;
pub mod message;
pub mod vendor;
