//! TPM 2.0 commands and responses as bytes (TPM 2.0 Part 1 §16 and §18).
//!
//! Whatever passes TPM traffic on, or answers some of it itself, needs the header, the length and
//! the response code, and no more. The parameters of commands are built and read with
//! `tpm2-protocol` where they matter.

mod command;
mod frame;
pub mod host_commands;
mod operation;
mod response;
mod response_code;

pub use command::Command;
pub use frame::{
    HEADER, Header, MAX_SIZE, NO_SESSIONS, SESSIONS, frame, length_in_stream, read_frame,
};
pub use operation::Operation;
pub use response::{Response, response};
pub use response_code::{Disposition, ResponseCode};
