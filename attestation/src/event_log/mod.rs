//! Event logs of a measured boot (TCG PC Client Platform Firmware Profile §10): what firmware,
//! boot loader and kernel say they measured, and the replay that shows whether the PCRs agree.
//!
//! A log is hostile input. Everything in it is bounded, and nothing of it counts before a quote
//! over the replayed values was verified.

mod error;
mod event_type;
mod parser;
mod reader;
mod replay;
mod subject;
mod userspace;
#[cfg(any(test, feature = "fixture"))]
pub mod writer;

use cert_chain::{HashAlgorithm, HashValue};

pub use error::EventLogError;
pub use event_type::EventType;
pub use replay::{BankReplay, LogPart, MissingDigest, Replay};
pub use userspace::{UserspaceEvent, UserspaceLog, UserspaceLogError};

/// The longest log that is read. Boot loaders measure each line of their configuration: machines
/// with many kernels and menus write logs of more than 1 MiB.
pub const MAX_LOG: usize = 8 * 1024 * 1024;
/// The most events that are read; in a log of the greatest length they have 128 bytes on average.
pub const MAX_EVENTS: usize = 65_536;
pub use cert_chain::pcr::PCR_COUNT;

/// A log that was read completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    algorithms: Vec<HashAlgorithm>,
    events: Vec<Event>,
    /// From `StartupLocality`.
    startup_locality: Option<u8>,
}

/// One measurement, or one note in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The PCR. What was measured has one from 0 to 23; a note can have any number, and often has
    /// 0xffffffff.
    pub pcr: u32,
    /// What kind of event it is.
    pub event_type: EventType,
    /// The digests that were extended, at most one of each bank.
    pub digests: Vec<HashValue>,
    /// What the log says about it. For most types no PCR measured these bytes.
    pub data: Vec<u8>,
    /// Where the event starts in its log, in bytes.
    pub offset: usize,
}

impl EventLog {
    /// Reads a log: crypto-agile (`Spec ID Event03`) or, as firmware for TPM 1.2 wrote it, with
    /// SHA-1 alone. What fills the log's area behind the last event, zeros or 0xff, is left out.
    pub fn parse(bytes: &[u8]) -> Result<Self, EventLogError> {
        parser::parse(bytes)
    }

    /// The banks that the log announces. An event need not have a digest of each.
    pub fn algorithms(&self) -> &[HashAlgorithm] {
        &self.algorithms
    }

    /// The events in the order in which they were measured.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The PCR values that the log leads to, in every bank that it has digests of.
    pub fn replay(&self) -> Replay {
        replay::replay(self, &UserspaceLog::default())
    }

    /// The same for one bank: `None` if the log accounts for nothing in it.
    pub fn replay_bank(&self, bank: HashAlgorithm) -> Option<BankReplay> {
        let known = self.algorithms().contains(&bank);
        known.then(|| replay::replay_bank(self, &UserspaceLog::default(), bank))?
    }

    /// The PCR values that the log leads to together with what the running system measured after
    /// it. Banks that only the running system has digests of are left out: what firmware measured
    /// into them is not known.
    pub fn replay_with(&self, userspace: &UserspaceLog) -> Replay {
        replay::replay(self, userspace)
    }

    /// The first value of PCR 0 in its last byte (TPM 2.0 Part 1 §34.3, "H-CRTM"): a measured
    /// H-CRTM leaves 4 whatever the locality of `TPM2_Startup` was; without one it is that locality.
    fn start_of_pcr_0(&self) -> u8 {
        const AFTER_HCRTM: u8 = 4;
        let has_hcrtm = self
            .events
            .iter()
            .any(|event| event.extends(0) && event.event_type == EventType::EFI_HCRTM_EVENT);
        if has_hcrtm {
            AFTER_HCRTM
        } else {
            self.startup_locality.unwrap_or(0)
        }
    }
}

impl Event {
    /// The digest of one bank.
    pub fn digest(&self, bank: HashAlgorithm) -> Option<&HashValue> {
        self.digests
            .iter()
            .find(|digest| digest.algorithm() == bank)
    }

    /// Whether the event changed a PCR (`EV_NO_ACTION` never does).
    pub fn is_measured(&self) -> bool {
        self.event_type != EventType::NO_ACTION
    }

    /// The PCR that the event changed, if it changed one.
    pub fn extended_pcr(&self) -> Option<u8> {
        u8::try_from(self.pcr)
            .ok()
            .filter(|pcr| *pcr < PCR_COUNT && self.is_measured())
    }

    /// Whether the event changed this PCR.
    pub fn extends(&self, pcr: u8) -> bool {
        self.extended_pcr() == Some(pcr)
    }

    /// Whether the event says only that a phase ended. Its digest in `bank` decides, because an
    /// event's type is not measured: whoever writes the log can call anything a separator. Firmware
    /// measures four bytes, all zeros or all ones (PFP §10.4.1, EV_SEPARATOR).
    pub fn is_separator(&self, bank: HashAlgorithm) -> bool {
        self.event_type == EventType::SEPARATOR
            && self.digest(bank).is_some_and(|digest| {
                [[0x00; 4], [0xff; 4]]
                    .iter()
                    .any(|phase| bank.hash(&[phase]) == *digest)
            })
    }
}
