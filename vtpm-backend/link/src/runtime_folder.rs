//! What is in the runtime folder of a backend.

/// The socket that the manager dials.
pub const MANAGER_SOCKET: &str = "manager.sock";
/// The socket to which the VMM attaches (TPM emulator protocol).
pub const VMM_SOCKET: &str = "control.sock";
/// The socket to which a VMM connects that shares its guest's memory (vhost-user).
pub const VHOST_USER_SOCKET: &str = "vhost-user.sock";
