//! Control messages of a connection, in deterministic CBOR (`docs/connection.md` has the CDDL).

use attestation::Nonce;
use attestation::bounded_cbor::has_definite_lengths;
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
        let other_form = || {
            let reason = "not deterministic CBOR, or bytes follow it";
            ProtocolError::Message(reason.to_owned())
        };
        if !has_definite_lengths(bytes) {
            return Err(other_form());
        }
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
            && !(1..=MAX_FORMATS).contains(&formats.len())
        {
            return Err(ProtocolError::Message("no format, or too many".to_owned()));
        }
        message.is(bytes).then_some(message).ok_or_else(other_form)
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

    /// Values for other implementations: each message in hexadecimal, and what it is.
    #[test]
    fn messages_have_the_encoding_that_was_published() {
        let published = include_str!("../tests/messages_v1.txt").lines();
        let published: Vec<_> = published.filter_map(|line| line.split_once(' ')).collect();
        let messages = messages();
        assert_eq!(published.len(), messages.len());
        for ((encoded, what), message) in published.into_iter().zip(messages) {
            assert_eq!(encoded, hex::encode(message.to_bytes()), "{what}");
        }
    }

    #[test]
    fn whatever_else_a_decoder_might_take_for_a_message_is_none() {
        // [1, [{1: 1, 2: nonce}]]
        let request = [&[0x82, 1, 0x81, 0xa2, 1, 1, 2, 0x50][..], &[7; 16]].concat();
        assert!(Message::from_bytes(&request).is_ok());
        let nonce = [&[0x50][..], &[7; 16]].concat();
        let with = |begin: &[u8], end: &[u8]| [begin, &nonce, end].concat();
        let many_open = [&[0x82, 1, 0x81, 0xa2, 9, 0x82][..], &[0x9f; 400]].concat();
        for (what, bytes) in [
            (
                "a longer number",
                with(&[0x82, 1, 0x81, 0xa2, 1, 0x18, 1, 2], &[]),
            ),
            (
                "a longer key",
                with(&[0x82, 1, 0x81, 0xa2, 0x18, 1, 1, 2], &[]),
            ),
            (
                "a longer length",
                with(&[0x98, 2, 1, 0x81, 0xa2, 1, 1, 2], &[]),
            ),
            (
                "keys in another order",
                with(&[0x82, 1, 0x81, 0xa2, 2], &[1, 1]),
            ),
            (
                "a key twice",
                with(&[0x82, 1, 0x81, 0xa3, 1, 1, 1, 1, 2], &[]),
            ),
            (
                "an unknown key",
                with(&[0x82, 1, 0x81, 0xa3, 1, 1, 2], &[3, 0]),
            ),
            ("a key that is missing", vec![0x82, 1, 0x81, 0xa1, 1, 1]),
            (
                "an open map",
                with(&[0x82, 1, 0x81, 0xbf, 1, 1, 2], &[0xff]),
            ),
            (
                "an open array",
                with(&[0x9f, 1, 0x81, 0xa2, 1, 1, 2], &[0xff]),
            ),
            (
                "an element more",
                with(&[0x83, 1, 0x81, 0xa2, 1, 1, 2], &[0]),
            ),
            (
                "another inner element",
                with(&[0x82, 1, 0x82, 0xa2, 1, 1, 2], &[0]),
            ),
            ("a tag", with(&[0xc1, 0x82, 1, 0x81, 0xa2, 1, 1, 2], &[])),
            (
                "a tag within",
                with(&[0x82, 1, 0x81, 0xa2, 1, 0xc1, 1, 2], &[]),
            ),
            (
                "a number beyond 32 bits",
                with(
                    &[0x82, 1, 0x81, 0xa2, 1, 0x1b, 0, 0, 0, 1, 0, 0, 0, 0, 2],
                    &[],
                ),
            ),
            (
                "a number below zero",
                with(&[0x82, 1, 0x81, 0xa2, 1, 0x20, 2], &[]),
            ),
            (
                "a longest nonce",
                vec![0x82, 1, 0x81, 0xa2, 1, 1, 2, 0x5b, 0xff, 0xff, 0xff, 0xff],
            ),
            ("a short nonce", vec![0x82, 1, 0x81, 0xa2, 1, 1, 2, 0x41, 7]),
            (
                "an unknown kind",
                with(&[0x82, 4, 0x81, 0xa2, 1, 1, 2], &[]),
            ),
            ("a demand of no format", {
                let begin = [0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 1, 0x82, 0x80, 0x58, 32];
                [&begin[..], &[7; 32]].concat()
            }),
            ("arrays without an end", many_open),
            ("nothing", Vec::new()),
        ] {
            assert!(Message::from_bytes(&bytes).is_err(), "{what}");
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
