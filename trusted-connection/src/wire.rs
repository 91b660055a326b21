//! How a device and a service talk: a challenge there, evidence back.
//!
//! Each message is a length (32 bits, big endian) and so many bytes of CBOR. Neither end trusts
//! the other: lengths are checked before memory is taken, and both ends give the whole exchange one
//! [deadline](crate::deadline).

use std::io::{self, Read, Write};

use attestation::Nonce;
use attestation::bounded_cbor::has_definite_lengths;
use attestation::evidence::MAX_EVIDENCE;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// What a device asks for. Nothing in it says what the evidence shall be bound to: an attester that
/// signed what its caller names would sign for whoever stands in between.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Challenge {
    /// Version of the protocol.
    #[n(0)]
    version: u8,
    /// Fresh random bytes.
    #[n(1)]
    pub nonce: Nonce,
}

/// What a service answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    /// Evidence in CBOR.
    #[n(0)]
    Evidence(#[n(0)] ByteVec),
    /// Why there is none.
    #[n(1)]
    Failed(#[n(0)] Failure),
}

/// Why a service has no evidence to give. Details stay in the service's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Failure {
    /// The challenge was not understood.
    #[n(0)]
    Challenge,
    /// The VM's TPM did not do its part.
    #[n(1)]
    Tpm,
    /// The host did not do its part.
    #[n(2)]
    Host,
    /// Too many challenges at once.
    #[n(3)]
    Busy,
}

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not the CBOR that was agreed on.
    #[error("the other end sent something that is no message of this protocol: {0}")]
    Cbor(minicbor::decode::Error),
    /// The connection failed or was too slow.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Longer than any message.
    #[error("the other end announced {length} bytes; at most {limit} are accepted")]
    TooLong {
        /// Announced length.
        length: u32,
        /// Most that is accepted.
        limit: usize,
    },
    /// Another version of the protocol.
    #[error("the other end speaks version {found} of the protocol, this program version {VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
}

const VERSION: u8 = 2;
/// A challenge is little more than a nonce.
pub const MAX_CHALLENGE: usize = 256;
/// Evidence and its frame.
pub const MAX_RESPONSE: usize = MAX_EVIDENCE + 64;

impl Challenge {
    /// A challenge.
    pub fn new(nonce: Nonce) -> Self {
        Self {
            version: VERSION,
            nonce,
        }
    }

    /// Sends the challenge.
    pub fn send(&self, stream: &mut impl Write) -> Result<(), WireError> {
        send(stream, self)
    }

    /// Receives a challenge.
    pub fn receive(stream: &mut impl Read) -> Result<Self, WireError> {
        let challenge: Self = receive(stream, MAX_CHALLENGE)?;
        if challenge.version == VERSION {
            Ok(challenge)
        } else {
            Err(WireError::Version {
                found: challenge.version,
            })
        }
    }
}

impl Response {
    /// Sends the response.
    pub fn send(&self, stream: &mut impl Write) -> Result<(), WireError> {
        send(stream, self)
    }

    /// Receives a response.
    pub fn receive(stream: &mut impl Read) -> Result<Self, WireError> {
        receive(stream, MAX_RESPONSE)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Challenge => "it did not understand the challenge",
            Self::Tpm => "its TPM did not do its part (see the service's log)",
            Self::Host => "its host did not do its part (see the service's log)",
            Self::Busy => "it is answering too many challenges; try again",
        })
    }
}

fn send(stream: &mut impl Write, message: &impl Encode<()>) -> Result<(), WireError> {
    let body = match minicbor::to_vec(message) {
        Ok(body) => body,
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    };
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    // One write, so that a message is one segment where it fits.
    stream.write_all(&[length.to_be_bytes().as_slice(), &body].concat())?;
    stream.flush()?;
    Ok(())
}

fn receive<T: for<'b> Decode<'b, ()>>(
    stream: &mut impl Read,
    limit: usize,
) -> Result<T, WireError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    let size = usize::try_from(length)
        .ok()
        .filter(|size| *size <= limit)
        .ok_or(WireError::TooLong { length, limit })?;
    // Memory is taken as the bytes come: an announcement alone costs nothing.
    let mut body = Vec::new();
    stream
        .by_ref()
        .take(u64::from(length))
        .read_to_end(&mut body)?;
    if body.len() < size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if !has_definite_lengths(&body) {
        let indefinite = minicbor::decode::Error::message("an item does not say its length");
        return Err(WireError::Cbor(indefinite));
    }
    let mut decoder = minicbor::Decoder::new(&body);
    let message = decoder.decode().map_err(WireError::Cbor)?;
    if decoder.position() == body.len() {
        Ok(message)
    } else {
        let trailing = minicbor::decode::Error::message("bytes follow the message");
        Err(WireError::Cbor(trailing.at(decoder.position())))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn challenge() -> Challenge {
        Challenge::new(Nonce::new([7; 32]).unwrap())
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let mut bytes = Vec::new();
        challenge().send(&mut bytes).unwrap();
        assert_eq!(
            Challenge::receive(&mut bytes.as_slice()).unwrap(),
            challenge()
        );
        let response = Response::Failed(Failure::Busy);
        let mut bytes = Vec::new();
        response.send(&mut bytes).unwrap();
        assert_eq!(Response::receive(&mut bytes.as_slice()).unwrap(), response);
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_it_is_read() {
        let bytes = [0xff; 4];
        assert!(matches!(
            Challenge::receive(&mut bytes.as_slice()),
            Err(WireError::TooLong {
                length: u32::MAX,
                limit: MAX_CHALLENGE
            })
        ));
    }

    #[test]
    fn another_version_and_trailing_bytes_are_refused() {
        let mut other = challenge();
        other.version = 1;
        let mut bytes = Vec::new();
        other.send(&mut bytes).unwrap();
        assert!(matches!(
            Challenge::receive(&mut bytes.as_slice()),
            Err(WireError::Version { found: 1 })
        ));
        let mut body = minicbor::to_vec(challenge()).unwrap();
        body.push(0);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let bytes = [length.as_slice(), &body].concat();
        assert!(matches!(
            Challenge::receive(&mut bytes.as_slice()),
            Err(WireError::Cbor(_))
        ));
    }

    /// A decoder would take a note of each, sixteen times as long as what it is about.
    #[test]
    fn items_that_do_not_say_their_length_are_refused_before_anything_is_decoded() {
        let body = [&[0x83, 0, 0x41, 0, 0x82][..], &[0x9f; 1000]].concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let refused = Response::receive(&mut [&length[..], &body].concat().as_slice());
        let Err(WireError::Cbor(error)) = refused else {
            panic!("{refused:?}");
        };
        assert!(error.to_string().contains("does not say its length"));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut bytes = Vec::new();
        challenge().send(&mut bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(Challenge::receive(&mut bytes.get(..length).unwrap()).is_err());
        }
    }
}
