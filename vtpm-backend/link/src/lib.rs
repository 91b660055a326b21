//! What a vRoT's backend and its manager share, so that neither depends on the other.
//!
//! [`message`] is what passes between the two, in frames ([`frame`]), and [`zygote`] what passes
//! between the manager and the process that forks backends; [`sealing`] is the form of the state
//! that a backend gives away, under a [`StateKey`]; [`instance`] keeps a vRoT from running twice;
//! [`admission`] says whose VMMs may attach; [`runtime_folder`] names the sockets;
//! [`transport`] is how a VM reaches its TPM.

pub mod admission;
pub mod frame;
pub mod instance;
pub mod message;
pub mod quote;
pub mod runtime_folder;
pub mod sealing;
mod state_key;
pub mod transport;
pub mod zygote;

pub use state_key::{STATE_KEY_LENGTH, StateKey};
