//! Control messages of a connection, in deterministic CBOR (`docs/connection.md` has the CDDL).

use attestation::Nonce;
use attestation::device::MAX_DEVICE_EVIDENCE;
use attestation::evidence::MAX_EVIDENCE;
use bytes::Bytes;
use cert_chain::Digest32;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::error::{NoEvidence, ProtocolError};

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Message {
    /// The first message of each end.
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Show evidence.
    #[n(1)]
    Request(#[n(0)] Request),
    /// Evidence, or why there is none.
    #[n(2)]
    Answer(#[n(0)] Answer),
    /// The evidence was accepted.
    #[n(3)]
    Accepted(#[n(0)] Accepted),
}

/// What an end is, and what it demands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Hello {
    #[n(0)]
    pub(crate) version: u8,
    #[n(1)]
    pub(crate) demand: Demand,
}

/// What one end demands of the other before it takes or gives data.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Demand {
    /// No evidence.
    #[n(0)]
    Nothing,
    /// Evidence that a policy accepts.
    #[n(1)]
    Evidence {
        /// Forms of evidence that are accepted.
        #[n(0)]
        formats: Vec<Format>,
        /// Digest of the policy, for the log of the end that is judged by it.
        #[n(1)]
        policy: Digest32,
    },
}

/// A form of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Format {
    /// Of a VM and its host (`evidence.cddl`).
    #[n(1)]
    Vrot,
    /// Of a device with a TPM.
    #[n(2)]
    Device,
    /// None: the certificate that the client showed in the handshake is all there is to know of it. The
    /// evidence is an empty text.
    #[n(3)]
    ClientCertificate,
}

/// Asks for evidence.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Request {
    /// Counts this end's requests on this connection, from one.
    #[n(1)]
    pub(crate) sequence: u32,
    #[n(2)]
    pub(crate) nonce: Nonce,
}

/// Answers a request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Answer {
    #[n(1)]
    pub(crate) sequence: u32,
    #[n(2)]
    pub(crate) content: Content,
}

/// What a request was answered with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Content {
    #[n(0)]
    Evidence(#[n(0)] ByteVec),
    #[n(1)]
    None(#[n(0)] NoEvidence),
}

/// Evidence was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Accepted {
    #[n(1)]
    pub(crate) sequence: u32,
    /// For how long, in milliseconds.
    #[n(2)]
    pub(crate) valid_for_ms: u64,
}

/// Version of the protocol.
pub(crate) const VERSION: u8 = 1;
/// The longest message without evidence.
pub(crate) const MAX_SHORT: usize = 512;
/// What an answer has beside its evidence.
const AROUND: usize = 64;
/// The longest message: evidence of the longest format.
pub(crate) const MAX_ANSWER: usize = MAX_EVIDENCE + AROUND;
/// More forms than there are.
const MAX_FORMATS: usize = 8;

impl Demand {
    /// How long an answer to a request may be.
    pub(crate) fn longest_answer(&self) -> usize {
        let formats = match self {
            Self::Nothing => &[][..],
            Self::Evidence { formats, .. } => formats,
        };
        let longest = |format: &Format| match format {
            Format::Vrot => MAX_ANSWER,
            Format::Device => MAX_DEVICE_EVIDENCE + AROUND,
            Format::ClientCertificate => MAX_SHORT,
        };
        formats.iter().map(longest).max().unwrap_or(MAX_SHORT)
    }
}

/// Compares what is written with bytes that are there: nothing is kept of it.
struct Same<'b>(&'b [u8]);

impl minicbor::encode::Write for Same<'_> {
    type Error = Differs;

    fn write_all(&mut self, written: &[u8]) -> Result<(), Differs> {
        self.0 = self.0.strip_prefix(written).ok_or(Differs)?;
        Ok(())
    }
}

#[derive(Debug)]
struct Differs;

impl Message {
    /// Whether these bytes, and no more, are the message.
    fn is(&self, bytes: &[u8]) -> bool {
        let mut same = Same(bytes);
        minicbor::encode(self, &mut same).is_ok() && same.0.is_empty()
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        match minicbor::to_vec(self) {
            Ok(bytes) => bytes.into(),
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads a message, which is in the one form that it has.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let message: Self =
            minicbor::decode(bytes).map_err(|error| ProtocolError::Message(error.to_string()))?;
        if let Self::Hello(hello) = &message
            && hello.version != VERSION
        {
            return Err(ProtocolError::Version {
                found: hello.version,
                ours: VERSION,
            });
        }
        if let Self::Hello(Hello {
            demand: Demand::Evidence { formats, .. },
            ..
        }) = &message
            && formats.len() > MAX_FORMATS
        {
            return Err(ProtocolError::Message("too many formats".to_owned()));
        }
        if message.is(bytes) {
            Ok(message)
        } else {
            Err(ProtocolError::Message(
                "not deterministic CBOR, or bytes follow it".to_owned(),
            ))
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "a hello",
            Self::Request(_) => "a request",
            Self::Answer(_) => "an answer",
            Self::Accepted(_) => "an acceptance",
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn messages() -> Vec<Message> {
        let nonce = Nonce::new([7; 32]).unwrap();
        vec![
            Message::Hello(Hello {
                version: VERSION,
                demand: Demand::Nothing,
            }),
            Message::Hello(Hello {
                version: VERSION,
                demand: Demand::Evidence {
                    formats: vec![Format::Vrot, Format::Device, Format::ClientCertificate],
                    policy: Digest32::new([1; 32]),
                },
            }),
            Message::Request(Request { sequence: 1, nonce }),
            Message::Answer(Answer {
                sequence: 1,
                content: Content::Evidence(vec![1, 2, 3].into()),
            }),
            Message::Answer(Answer {
                sequence: 1,
                content: Content::None(NoEvidence::Busy),
            }),
            Message::Accepted(Accepted {
                sequence: 1,
                valid_for_ms: 300_000,
            }),
        ]
    }

    #[test]
    fn messages_arrive_as_they_were_sent_and_no_other_bytes_are_one() {
        for message in messages() {
            let bytes = message.to_bytes();
            assert_eq!(Message::from_bytes(&bytes).unwrap(), message);
            for length in 0..bytes.len() {
                assert!(
                    Message::from_bytes(bytes.get(..length).unwrap()).is_err(),
                    "{message:?}"
                );
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Message::from_bytes(&longer).is_err(), "{message:?}");
        }
    }

    #[test]
    fn only_answers_are_long() {
        for message in messages() {
            assert!(message.to_bytes().len() < MAX_SHORT, "{message:?}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let other = Message::Hello(Hello {
            version: 2,
            demand: Demand::Nothing,
        });
        assert_eq!(
            Message::from_bytes(&other.to_bytes()),
            Err(ProtocolError::Version { found: 2, ours: 1 })
        );
    }

    #[test]
    fn an_answer_may_be_as_long_as_the_longest_format_that_is_demanded() {
        let longest = |formats: &[Format]| {
            Demand::Evidence {
                formats: formats.to_vec(),
                policy: Digest32::new([0; 32]),
            }
            .longest_answer()
        };
        assert_eq!(Demand::Nothing.longest_answer(), MAX_SHORT);
        assert_eq!(longest(&[Format::ClientCertificate]), MAX_SHORT);
        let device = longest(&[Format::Device]);
        assert!(device > MAX_DEVICE_EVIDENCE && device < MAX_EVIDENCE);
        assert_eq!(
            longest(&[Format::Device, Format::ClientCertificate]),
            device
        );
        let vrot = longest(&[Format::Device, Format::Vrot]);
        assert!(vrot > MAX_EVIDENCE);
        // As long as evidence can be, an answer still fits.
        let answer = Message::Answer(Answer {
            sequence: u32::MAX,
            content: Content::Evidence(vec![0; MAX_EVIDENCE].into()),
        });
        assert!(answer.to_bytes().len() <= vrot);
    }
}
