//! Event logs of a measured boot (TCG PC Client Platform Firmware Profile §10): what firmware,
//! boot loader and kernel say they measured, and the replay that shows whether the PCRs agree.
//!
//! A log is hostile input. Everything in it is bounded, and nothing of it counts before a quote
//! over the replayed values was verified.

mod event_type;
mod parser;
mod replay;
mod subject;

use cert_chain::Digest32;
use serde::Serialize;

pub use event_type::EventType;
pub use parser::{EventLogError, MAX_EVENTS, MAX_LOG};
pub use replay::{BankValues, Replay};

/// A log that was read completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    algorithms: Vec<HashAlgorithm>,
    events: Vec<Event>,
    /// From `StartupLocality`: the first value of PCR 0, which is 0 without such a note.
    startup_locality: Option<u8>,
}

/// One measurement, or one note in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The PCR, from 0 to 23.
    pub pcr: u8,
    /// What kind of event it is.
    pub event_type: EventType,
    /// The digests that were extended, by algorithm.
    pub digests: Vec<(HashAlgorithm, Vec<u8>)>,
    /// What the log says about it. For most types no PCR measured these bytes.
    pub data: Vec<u8>,
}

/// The hash algorithms of PCR banks that can be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// `TPM_ALG_SHA1`
    Sha1,
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
    /// `TPM_ALG_SHA512`
    Sha512,
}

/// PCRs of a PC-client TPM (TCG PC Client Platform TPM Profile §4.6).
pub const PCR_COUNT: u8 = 24;

impl EventLog {
    /// Reads a log: crypto-agile (`Spec ID Event03`) or, as firmware for TPM 1.2 wrote it, with
    /// SHA-1 alone.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        parser::parse(bytes)
    }

    /// The banks that the log accounts for.
    pub fn algorithms(&self) -> &[HashAlgorithm] {
        &self.algorithms
    }

    /// The events in the order in which they were measured.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The PCR values that the log leads to, in every bank.
    pub fn replay(&self) -> Replay {
        replay::replay(self)
    }

    /// The PCR values that the log leads to in the SHA-256 bank. Without digests of that bank
    /// they are those of a TPM that measured nothing.
    pub fn replay_sha256(&self) -> BankValues<32> {
        replay::replay_sha256(self)
    }
}

impl Event {
    /// The digest of one bank.
    pub fn digest(&self, algorithm: HashAlgorithm) -> Option<&[u8]> {
        self.digests
            .iter()
            .find(|(of, _)| *of == algorithm)
            .map(|(_, digest)| digest.as_slice())
    }

    /// Whether the event changed a PCR (`EV_NO_ACTION` never does).
    pub fn is_measured(&self) -> bool {
        self.event_type != EventType::NO_ACTION
    }

    /// Whether the event says only that a phase ended. The digest decides, because an event's
    /// type is not measured: whoever writes the log can call anything a separator. Firmware
    /// measures four bytes, all zeros or all ones (PFP §10.4.1, EV_SEPARATOR).
    pub fn is_separator(&self) -> bool {
        self.event_type == EventType::SEPARATOR
            && self.digest(HashAlgorithm::Sha256).is_some_and(|digest| {
                [[0x00; 4], [0xff; 4]]
                    .iter()
                    .any(|phase| Digest32::of(phase).as_bytes() == digest)
            })
    }
}

impl HashAlgorithm {
    /// The algorithm with this `TPM_ALG_ID`.
    pub fn from_identifier(identifier: u16) -> Option<Self> {
        match identifier {
            0x0004 => Some(Self::Sha1),
            0x000b => Some(Self::Sha256),
            0x000c => Some(Self::Sha384),
            0x000d => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Length of a digest in bytes.
    pub const fn digest_length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The bank's name as tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}
