//! How programs that a VM's launcher takes for swtpm hand over to the manager of this host.
//!
//! Launchers that know swtpm (libvirt and what stands on it) own a folder for each VM and a process
//! beside each VM. Both stay: the folder holds a small file that names the vRoT ([`folder_file`]),
//! and the process ([`stand_in`]) takes the VMM's connections and passes them on to the vRoT's
//! backend, which the manager starts. No key and no state is in the folder.
//!
//! What they say to each other ([`message`]) goes over a socket of its own, because descriptors come
//! along ([`channel`]).

pub mod channel;
pub mod config;
pub mod error;
pub mod folder_file;
pub mod message;
mod relay;
pub mod set_up;
pub mod stand_in;

pub use error::HandoverError;

/// Name of the manager's socket for this, in its runtime folder.
pub const SOCKET: &str = "swtpm.sock";
