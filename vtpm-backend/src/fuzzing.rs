//! Entry points for fuzzers: everything that reads bytes of a guest, a VMM or a manager.

use tpm_wire::{Command, length_in_stream};

use crate::control::{Reply, Request, RequestStream, SwtpmExport, Vrot, handle};
use crate::engine::fake::FakeEngine;
use crate::host_commands::VendorCommand;
use crate::host_commands::capability::Query;
use backend_link::frame::decode;
use backend_link::message::{FromBackend, ToBackend};

/// Everything that a VMM can do on the control channel of a TPM: the requests, in pieces of as many
/// bytes as the first byte says, and what is answered.
///
/// # Panics
///
/// If the requests depend on the pieces that they came in, or a reply has not the length that a VMM
/// reads.
pub fn control_channel(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let piece = usize::from(*piece).max(1);
    let requests = requests(bytes.chunks(piece));
    let at_once = self::requests([bytes].into_iter());
    assert_eq!(requests, at_once, "in pieces of {piece} bytes and at once");
    let (mut engine, mut locality) = (FakeEngine::default(), 0);
    for request in requests {
        let mut vrot = Vrot {
            engine: &mut engine,
            locality: &mut locality,
            state_export: &mut SwtpmExport::default(),
        };
        let reply = handle(&mut vrot, request.clone());
        assert!(locality <= 4, "locality {locality} after {request:?}");
        match reply {
            Reply::Answer(answer) => assert_whole(&request, &answer),
            Reply::AnswerAndEnd(answer) => {
                assert_whole(&request, &answer);
                return;
            }
            Reply::TakeDataFd => {}
        }
    }
}

/// What is understood of a stream, up to where it makes no sense.
fn requests<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> Vec<Request> {
    let mut stream = RequestStream::default();
    let (mut received, mut requests) = (Vec::new(), Vec::new());
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match stream.take(&received) {
                Ok(Some((request, length))) => {
                    received.drain(..length);
                    requests.push(request);
                }
                Ok(None) => break,
                Err(_) => return requests,
            }
        }
    }
    requests
}

/// VMMs wait for the whole reply even when the result is an error.
fn assert_whole(request: &Request, answer: &[u8]) {
    let word = |at: usize| {
        let word = answer.get(at..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u32::from_be_bytes(*word))
    };
    let length = |at| usize::try_from(word(at)).unwrap_or(usize::MAX);
    let expected = match request {
        Request::GetCapability | Request::GetEstablished | Request::GetConfig => 8,
        Request::SetBufferSize { .. } => 16,
        Request::GetStateBlob { .. } => 16 + length(12),
        Request::GetInfo { .. } if word(0) == 0 => 12 + length(8),
        Request::Init { .. }
        | Request::Shutdown
        | Request::SetLocality(_)
        | Request::HashStart
        | Request::HashData(_)
        | Request::HashEnd
        | Request::Cancel
        | Request::StoreVolatile
        | Request::ResetEstablished(_)
        | Request::SetStateBlob { .. }
        | Request::Stop
        | Request::SetDataFd
        | Request::GetInfo { .. }
        | Request::LockStorage
        | Request::Unknown(_) => 4,
    };
    assert_eq!(answer.len(), expected, "{request:?}");
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
