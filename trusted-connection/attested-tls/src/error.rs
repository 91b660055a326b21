//! Why there is no connection, or no longer one.

use std::io;

use minicbor::{Decode, Encode};

/// Why a connection was not made, or ended other than by its ends' will.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The transport failed, or TLS did.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The handshake gave something that this protocol does not allow.
    #[error("the TLS connection cannot be attested: {0}")]
    Tls(TlsFault),
    /// The peer did not keep to the protocol.
    #[error("the peer does not keep to the protocol")]
    Protocol(#[from] ProtocolError),
    /// The peer has no evidence to show.
    #[error("the peer shows no evidence: {0}")]
    PeerHasNone(NoEvidence),
    /// The peer's evidence was refused.
    #[error("the peer's evidence is refused")]
    Refused(#[source] EvidenceRefused),
    /// The peer closed the connection.
    #[error("the peer closed the connection: {0}")]
    ClosedByPeer(CloseReason),
    /// The peer took longer than it may.
    #[error("the peer took too long {0}")]
    TooSlow(Stage),
    /// The last appraisal has ended, and there is no new one.
    #[error("the appraisal of the peer has ended, and it could not be made anew")]
    AppraisalEnded,
    /// This end's application gave the connection up.
    #[error("the connection was given up before both ends had sent all data")]
    Abandoned,
    /// So much evidence is being received and judged that there is no room for more.
    #[error("there is no room for the peer's evidence beside that of others; it can try again")]
    NoRoom,
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
}

/// Why there is no evidence. Details stay in the attester's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[cbor(index_only)]
pub enum NoEvidence {
    /// This end has no root of trust.
    #[n(0)]
    #[error("it has no root of trust")]
    NoRootOfTrust,
    /// Not in a form that was asked for.
    #[n(1)]
    #[error("it has none in a form that was asked for")]
    Format,
    /// The TPM did not do its part.
    #[n(2)]
    #[error("its TPM did not do its part (see its log)")]
    Tpm,
    /// The host below it did not do its part.
    #[n(3)]
    #[error("its host did not do its part (see its log)")]
    Host,
    /// Too many requests at once.
    #[n(4)]
    #[error("it has too many requests; try again")]
    Busy,
}

/// Evidence was refused.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct EvidenceRefused {
    /// Why, for this end's log.
    pub reason: String,
}

/// What a handshake must not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// Not TLS 1.3.
    #[error("it is not TLS 1.3")]
    Version,
    /// Continued from an earlier one.
    #[error("it continues an earlier connection, and what is resumed is attested by nothing")]
    Resumed,
    /// Data came or went before the handshake was done.
    #[error("it has early data")]
    EarlyData,
    /// No certificate of the server.
    #[error("the server has no certificate")]
    NoCertificate,
    /// A certificate without a readable key.
    #[error("a certificate has no readable key")]
    Certificate,
    /// No exported value.
    #[error("no value can be exported from it")]
    Exporter,
}

/// How a peer departs from the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame that cannot be one.
    #[error("a frame of kind {kind} with {length} bytes")]
    Frame {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// A frame that is too long.
    #[error("a frame of {length} bytes is announced")]
    FrameTooLong {
        /// Its length.
        length: usize,
    },
    /// More data than its receiver has room for.
    #[error("more data than there is room for")]
    Window,
    /// Data before both ends had what they demanded.
    #[error("data before the attestation was done")]
    EarlyData,
    /// Data behind the end of the data.
    #[error("data behind their end")]
    DataAfterEnd,
    /// A control message that is longer than any there may be now.
    #[error("a message of more than {limit} bytes")]
    MessageTooLong {
        /// The most there may be.
        limit: usize,
    },
    /// A control message that is none.
    #[error("a message that is none of this protocol: {0}")]
    Message(String),
    /// Another version of the protocol.
    #[error("the peer speaks version {found} of the protocol, this program version {ours}")]
    Version {
        /// The peer's.
        found: u8,
        /// Ours.
        ours: u8,
    },
    /// A message that has no place now.
    #[error("{0} out of turn")]
    OutOfTurn(&'static str),
    /// Evidence is asked for more often than anybody needs.
    #[error("evidence is asked for again too soon")]
    TooOften,
    /// The connection ended without a close frame.
    #[error("the connection ended without a close frame")]
    Truncated,
}

/// What was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The TLS handshake.
    Handshake,
    /// The attestation after it.
    Attestation,
    /// Taking what was sent.
    Sending,
}

/// Why a connection is closed, as it travels: one byte. Details stay in each end's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both ends have sent all data.
    Done,
    /// The application gave the connection up.
    Abandoned,
    /// The peer departed from the protocol.
    Protocol,
    /// The peer's evidence was refused.
    Refused,
    /// The peer's appraisal has ended.
    AppraisalEnded,
    /// Evidence was demanded, and there is none.
    NoEvidence,
    /// The peer was too slow.
    TooSlow,
    /// Too many connections, or too much evidence at once.
    Busy,
    /// What is behind the peer cannot be reached.
    Unreachable,
    /// The peer's program is being stopped.
    Stopping,
    /// A reason that this program does not know.
    Other(u8),
}

const REASONS: [(u8, CloseReason); 10] = [
    (0, CloseReason::Done),
    (1, CloseReason::Abandoned),
    (2, CloseReason::Protocol),
    (3, CloseReason::Refused),
    (4, CloseReason::AppraisalEnded),
    (5, CloseReason::NoEvidence),
    (6, CloseReason::TooSlow),
    (7, CloseReason::Busy),
    (8, CloseReason::Unreachable),
    (9, CloseReason::Stopping),
];

impl CloseReason {
    pub(crate) fn from_code(code: u8) -> Self {
        REASONS
            .into_iter()
            .find_map(|(known, reason)| (known == code).then_some(reason))
            .unwrap_or(Self::Other(code))
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Other(code) => code,
            _ => REASONS
                .into_iter()
                .find_map(|(code, reason)| (reason == self).then_some(code))
                .unwrap_or(u8::MAX),
        }
    }
}

impl ConnectionError {
    /// What the peer is told, if it is there to hear it.
    pub(crate) fn to_tell(&self) -> Option<CloseReason> {
        match self {
            Self::Io(_) | Self::ClosedByPeer(_) | Self::Tls(_) => None,
            Self::Protocol(ProtocolError::Truncated) => None,
            Self::Protocol(_) => Some(CloseReason::Protocol),
            Self::PeerHasNone(_) => Some(CloseReason::NoEvidence),
            Self::Refused(_) => Some(CloseReason::Refused),
            Self::TooSlow(_) => Some(CloseReason::TooSlow),
            Self::AppraisalEnded => Some(CloseReason::AppraisalEnded),
            Self::NoRoom => Some(CloseReason::Busy),
            Self::Abandoned | Self::Random => Some(CloseReason::Abandoned),
        }
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "all data were sent",
            Self::Abandoned => "its application gave it up",
            Self::Protocol => "it says that we do not keep to the protocol",
            Self::Refused => "it refuses our evidence",
            Self::AppraisalEnded => "its appraisal of us has ended",
            Self::NoEvidence => "it demands evidence, and got none",
            Self::TooSlow => "we took too long",
            Self::Busy => "it has too many connections, or too much evidence to judge",
            Self::Unreachable => "what is behind it cannot be reached",
            Self::Stopping => "its program is being stopped",
            Self::Other(code) => return write!(f, "reason {code}"),
        })
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Handshake => "with the TLS handshake",
            Self::Attestation => "with the attestation",
            Self::Sending => "to take what was sent",
        })
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Protocol(ProtocolError::Truncated)
        } else {
            Self::Io(error)
        }
    }
}
