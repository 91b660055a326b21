//! What a vRoT answers itself, before the engine sees it: the two commands that reach the host,
//! and the capabilities that make them known.
//!
//! [`tpm_wire::host_commands`] describes both. An ordinary kernel learns them from the patched list of
//! commands and lets them through.

pub mod capability;
mod tickets;

use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST, VENDOR};
use tpm_wire::{Command, ResponseCode, response};

pub use tickets::{Found, Layer, Tickets};

/// The most that one READ returns: it fits every buffer that a VMM offers (3,968 bytes).
const MAX_CHUNK: usize = 2048;

/// What a vendor command asks for, read completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorCommand {
    /// Evidence for this digest.
    Request {
        /// The digest.
        digest: [u8; 32],
    },
    /// A part of the answer to a request.
    Read {
        /// Names the request.
        ticket: u64,
        /// Where the part starts.
        offset: u32,
    },
}

impl VendorCommand {
    /// Reads a vendor command; `None` if it is the engine's business.
    pub fn parse(command: &Command<'_>) -> Option<Result<Self, ResponseCode>> {
        let read = match command.code() | VENDOR {
            HOST_EVIDENCE_REQUEST => Self::parse_request,
            HOST_EVIDENCE_READ => Self::parse_read,
            _ => return None,
        };
        if !command.is_without_sessions() {
            return Some(Err(ResponseCode::AUTH_CONTEXT));
        }
        Some(read(command.parameters()))
    }

    fn parse_request(parameters: &[u8]) -> Result<Self, ResponseCode> {
        const LENGTH: u16 = 32;
        match parameters.split_first_chunk() {
            Some((length, digest)) if u16::from_be_bytes(*length) == LENGTH => digest
                .try_into()
                .map(|digest| Self::Request { digest })
                .map_err(|_| ResponseCode::COMMAND_SIZE),
            Some(_) => Err(ResponseCode::SIZE.of_parameter(1)),
            None => Err(ResponseCode::COMMAND_SIZE),
        }
    }

    fn parse_read(parameters: &[u8]) -> Result<Self, ResponseCode> {
        let (ticket, offset) = parameters
            .split_first_chunk()
            .ok_or(ResponseCode::COMMAND_SIZE)?;
        let offset = offset.try_into().map_err(|_| ResponseCode::COMMAND_SIZE)?;
        Ok(Self::Read {
            ticket: u64::from_be_bytes(*ticket),
            offset: u32::from_be_bytes(offset),
        })
    }
}

/// The response to a REQUEST.
pub fn ticket_response(ticket: u64) -> Vec<u8> {
    response(ResponseCode::SUCCESS, &ticket.to_be_bytes())
}

/// The response to a READ that finds this.
pub fn read_response(found: Found<'_>) -> Vec<u8> {
    let (bytes, total) = match found {
        Found::NoTicket => return ResponseCode::VALUE.of_parameter(1).response(),
        Found::NotYet | Found::Elsewhere => return ResponseCode::RETRY.response(),
        Found::Declined => return ResponseCode::NO_RESULT.response(),
        Found::BehindEnd => return ResponseCode::VALUE.of_parameter(2).response(),
        Found::Bytes(bytes, total) => (bytes, total),
    };
    let chunk = bytes.get(..MAX_CHUNK).unwrap_or(bytes);
    let length = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
    let parameters = [total.to_be_bytes().as_slice(), &length.to_be_bytes(), chunk].concat();
    response(ResponseCode::SUCCESS, &parameters)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use tpm_wire::frame;

    use super::*;
    use backend_link::message::LayerPart;

    fn parsed(
        tag: u16,
        code: u32,
        parameters: &[u8],
    ) -> Option<Result<VendorCommand, ResponseCode>> {
        let bytes = frame(tag, code, parameters);
        VendorCommand::parse(&Command::parse(&bytes).unwrap())
    }

    #[test]
    fn well_formed_vendor_commands_are_read() {
        let digest = [&[0, 32], [7; 32].as_slice()].concat();
        assert_eq!(
            parsed(0x8001, HOST_EVIDENCE_REQUEST, &digest),
            Some(Ok(VendorCommand::Request { digest: [7; 32] }))
        );
        let read = [[0, 0, 0, 0, 0, 0, 0, 9].as_slice(), &[0, 0, 8, 0]].concat();
        assert_eq!(
            parsed(0x8001, HOST_EVIDENCE_READ, &read),
            Some(Ok(VendorCommand::Read {
                ticket: 9,
                offset: 2048
            }))
        );
        assert_eq!(
            parsed(0x8001, 0x5653, &read),
            parsed(0x8001, HOST_EVIDENCE_READ, &read),
            "as old kernels send it"
        );
        assert_eq!(parsed(0x8001, 0x17b, &[0, 8]), None);
    }

    #[test]
    fn malformed_vendor_commands_get_the_code_that_says_so() {
        let refused = |tag, code, parameters: &[u8]| parsed(tag, code, parameters).unwrap();
        let digest = [&[0, 32], [7; 32].as_slice()].concat();
        for (tag, code, parameters, response) in [
            (
                0x8002,
                HOST_EVIDENCE_REQUEST,
                digest.as_slice(),
                ResponseCode::AUTH_CONTEXT,
            ),
            (
                0x8001,
                HOST_EVIDENCE_REQUEST,
                &[],
                ResponseCode::COMMAND_SIZE,
            ),
            (
                0x8001,
                HOST_EVIDENCE_REQUEST,
                &[0, 31, 1],
                ResponseCode::SIZE.of_parameter(1),
            ),
            (
                0x8001,
                HOST_EVIDENCE_REQUEST,
                &[0, 32, 1],
                ResponseCode::COMMAND_SIZE,
            ),
            (
                0x8001,
                HOST_EVIDENCE_READ,
                &[0; 11],
                ResponseCode::COMMAND_SIZE,
            ),
            (
                0x8001,
                HOST_EVIDENCE_READ,
                &[0; 13],
                ResponseCode::COMMAND_SIZE,
            ),
        ] {
            assert_eq!(refused(tag, code, parameters), Err(response));
        }
    }

    #[test]
    fn an_answer_is_read_in_chunks_until_its_end() {
        let mut tickets = Tickets::default();
        let ticket = tickets.open();
        let read = |tickets: &Tickets, ticket, offset| read_response(tickets.find(ticket, offset));
        assert_eq!(read(&tickets, ticket, 0), ResponseCode::RETRY.response());
        let part = LayerPart {
            total: 5000,
            offset: 0,
            bytes: vec![5; 3000].into(),
        };
        tickets.answer(ticket, Some(part));
        assert_eq!(read(&tickets, ticket, 0).len(), 10 + 6 + 2048);
        assert_eq!(read(&tickets, ticket, 2048).len(), 10 + 6 + 952);
        assert_eq!(read(&tickets, ticket, 3000), ResponseCode::RETRY.response());
        assert_eq!(read(&tickets, ticket, 5000).len(), 10 + 6);
        assert_eq!(
            read(&tickets, ticket, 5001),
            ResponseCode::VALUE.of_parameter(2).response()
        );
        assert_eq!(
            read(&tickets, ticket.wrapping_add(1), 0),
            ResponseCode::VALUE.of_parameter(1).response()
        );
    }
}
