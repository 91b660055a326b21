//! One virtualized root of trust (vRoT): a TPM 2.0 in a process of its own.
//!
//! [`engine`] is the TPM itself (libtpms); [`host_commands`] answers the commands that reach the host
//! through it; [`control`] speaks the TPM emulator protocol of QEMU, cloud-hypervisor and
//! libvirt; [`server`] is the one loop that serves them; [`stand_alone`] and [`managed`] decide
//! where state goes; [`sandbox`] takes away, before the first guest byte, everything that is not
//! needed, [`privileges`] users and capabilities. [`zygote`] starts backends as forks of a process
//! that has loaded all of that. What passes between a backend and its manager, and the form in which
//! state leaves, is in the crate `backend-link`, which the manager has as well.

pub mod command_line;
pub mod control;
pub mod engine;
#[cfg(feature = "testing")]
pub mod fuzzing;
pub mod host_commands;
mod host_quote;
mod lost_memory;
pub mod managed;
pub mod privileges;
pub mod sandbox;
pub mod server;
pub mod sockets;
pub mod stand_alone;
pub mod termination;
pub mod zygote;
