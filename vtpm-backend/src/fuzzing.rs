//! Entry points for fuzzers: everything that reads bytes of a guest, a VMM or a manager.

use crate::command::{Command, length_in_stream};
use crate::control::Request;
use crate::message::{FromBackend, ToBackend, decode};
use crate::vendor::VendorCommand;
use crate::vendor::capability::Query;

/// Requests on the control channel, one after the other.
pub fn control_channel(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((_, length))) = Request::parse(rest) {
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// The header of a TPM command, as a stream and whole.
pub fn command_header(bytes: &[u8]) {
    let _ = length_in_stream(bytes);
    let _ = Command::parse(bytes).map(|command| command.parameters().len());
}

/// A vendor command.
pub fn vendor_command(bytes: &[u8]) {
    if let Ok(command) = Command::parse(bytes) {
        let _ = VendorCommand::parse(&command);
    }
}

/// A `TPM2_GetCapability` (the first 22 bytes) and an engine's answer to it.
pub fn capability(bytes: &[u8]) {
    let Some((command, answer)) = bytes.split_at_checked(22) else {
        return;
    };
    if let Ok(command) = Command::parse(command)
        && let Some(query) = Query::parse(&command)
    {
        query.patch(answer.to_vec());
    }
}

/// A frame between manager and backend, in either direction.
pub fn message(bytes: &[u8]) {
    let _ = decode::<ToBackend>(bytes);
    let _ = decode::<FromBackend>(bytes);
}
