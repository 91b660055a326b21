//! Frames on a stream: a length (32 bits, big endian) and so many bytes of CBOR, at most
//! [`MAX_FRAME`].

use std::io::{self, Read, Write};

use locked_memory::append;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not the CBOR that was agreed on.
    #[error("a frame that is no message: {0}")]
    Cbor(minicbor::decode::Error),
    /// The connection failed.
    #[error("the connection between manager and backend failed")]
    Io(#[from] io::Error),
    /// Longer than any message.
    #[error("a frame of {length} bytes; at most {MAX_FRAME} are accepted")]
    TooLong {
        /// Announced length.
        length: usize,
    },
}

/// A whole permanent state of libtpms has at most about 200 KiB.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Length of what precedes a frame.
pub const HEADER: usize = 4;

/// A message with its length in front. Keys travel in messages: the frame is zeroed when dropped,
/// and was never copied.
pub fn encode(message: &impl Encode<()>) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    let mut frame = Frame(Zeroizing::new(vec![0; HEADER]));
    match minicbor::encode(message, &mut frame) {
        Ok(()) => {}
        Err(error) => unreachable!("a frame takes every byte: {error}"),
    }
    let Frame(mut frame) = frame;
    let body = frame.len() - HEADER;
    match (u32::try_from(body), frame.first_chunk_mut()) {
        (Ok(length), Some(header)) if body <= MAX_FRAME => {
            *header = length.to_be_bytes();
            Ok(frame)
        }
        _ => Err(FrameError::TooLong { length: body }),
    }
}

/// Bytes that leave no copy behind when they need more room.
struct Frame(Zeroizing<Vec<u8>>);

impl minicbor::encode::Write for Frame {
    type Error = std::convert::Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        append(&mut self.0, bytes);
        Ok(())
    }
}

/// The length that a frame's header announces.
pub fn announced(header: [u8; HEADER]) -> Result<usize, FrameError> {
    match usize::try_from(u32::from_be_bytes(header)) {
        Ok(length) if length <= MAX_FRAME => Ok(length),
        Ok(length) => Err(FrameError::TooLong { length }),
        Err(_) => Err(FrameError::TooLong { length: usize::MAX }),
    }
}

/// Reads the body of a frame; all of it must be the message.
pub fn decode<T: for<'b> Decode<'b, ()>>(body: &[u8]) -> Result<T, FrameError> {
    let mut decoder = minicbor::Decoder::new(body);
    let message = decoder.decode().map_err(FrameError::Cbor)?;
    if decoder.position() == body.len() {
        return Ok(message);
    }
    let trailing = minicbor::decode::Error::message("bytes follow the message");
    Err(FrameError::Cbor(trailing))
}

/// Writes a message to a blocking stream.
pub fn send(stream: &mut impl Write, message: &impl Encode<()>) -> Result<(), FrameError> {
    Ok(stream.write_all(&encode(message)?)?)
}

/// Reads a message from a blocking stream.
pub fn receive<T: for<'b> Decode<'b, ()>>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let mut body = Zeroizing::new(vec![0; announced(header)?]);
    stream.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use minicbor::bytes::ByteArray;

    use super::*;
    use crate::message::{Open, ToBackend};
    use crate::state_key::StateKey;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let mut bytes = Vec::new();
        let open = Open {
            vrot: ByteArray::from([7; 16]),
            generation: 3,
            key: StateKey::copied(&[9; 32]).unwrap(),
            permanent: Some(vec![1, 2, 3].into()),
            durability_deadline_ms: 500,
            volatile: None,
            is_copy: false,
            answer_within_ms: None,
        };
        send(&mut bytes, &ToBackend::Open(open)).unwrap();
        let ToBackend::Open(open) = receive(&mut bytes.as_slice()).unwrap() else {
            unreachable!("sent an Open");
        };
        assert_eq!(open.key.as_bytes(), &[9; 32]);
        assert_eq!(open.generation, 3);
    }

    #[test]
    fn long_frames_and_trailing_bytes_are_refused() {
        let header = [0xff; 4];
        assert!(matches!(announced(header), Err(FrameError::TooLong { .. })));
        let mut body = minicbor::to_vec(ToBackend::Hello).unwrap();
        body.push(0);
        assert!(matches!(
            decode::<ToBackend>(&body),
            Err(FrameError::Cbor(_))
        ));
    }
}
