//! What the running system goes on measuring after the boot, as systemd logs it: a JSON text
//! sequence (RFC 7464) with one record for each measurement, in the style of the TCG Canonical
//! Event Log Format.
//!
//! The firmware's log ends where the kernel takes over. From then on systemd measures the phases
//! of the boot into PCR 11, the machine's identity and its file systems into PCR 15, and more; only
//! with both logs do these PCRs have known values.

use cert_chain::hash_text::from_hex;
use cert_chain::{HashAlgorithm, HashValue};
use serde::Deserialize;

use super::{MAX_EVENTS, MAX_LOG, PCR_COUNT};

/// A userspace log that was read completely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserspaceLog {
    events: Vec<UserspaceEvent>,
}

/// One measurement by the running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserspaceEvent {
    /// The PCR, from 0 to 23; `None` for what was measured into an NV index instead.
    pub pcr: Option<u8>,
    /// The digests that were extended, at most one of each bank.
    pub digests: Vec<HashValue>,
    /// What kind of measurement it is, such as `phase`.
    pub kind: String,
    /// What the log says about it.
    pub description: String,
    /// Where the record starts in its log, in bytes.
    pub offset: usize,
}

/// Why bytes are not a userspace log. Records are counted from zero.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceLogError {
    /// A digest that cannot be, or the second of one bank.
    #[error("record {record} (offset {offset}) has a {bank} digest that is none, or two of them")]
    Digest {
        /// The record.
        record: usize,
        /// Where it starts.
        offset: usize,
        /// The bank, as the record names it.
        bank: HashAlgorithm,
    },
    /// Not a JSON text sequence.
    #[error(
        "it is no JSON text sequence (RFC 7464), in which each record begins with the byte 0x1e: \
         give the file that systemd writes, /run/log/systemd/tpm2-measure.log"
    )]
    Form,
    /// A record without digests.
    #[error("record {record} (offset {offset}) has no digest: nothing is known of its PCR")]
    NoDigest {
        /// The record.
        record: usize,
        /// Where it starts.
        offset: usize,
    },
    /// A record that names no place, or one that no TPM has.
    #[error("record {record} (offset {offset}) names neither a PCR from 0 to 23 nor an NV index")]
    Pcr {
        /// The record.
        record: usize,
        /// Where it starts.
        offset: usize,
    },
    /// A record that is not such a JSON object.
    #[error(
        "record {record} (offset {offset}) is no measurement: {source}; if it is the last, the log \
         was taken while it was written: take it again"
    )]
    Record {
        /// The record.
        record: usize,
        /// Where it starts.
        offset: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Longer than any log.
    #[error("{length} bytes are more than an event log can have ({MAX_LOG})")]
    TooLong {
        /// Number of bytes given.
        length: usize,
    },
    /// More records than any boot has.
    #[error("the log has more than {MAX_EVENTS} records")]
    TooManyRecords,
}

#[derive(Deserialize)]
struct Record {
    pcr: Option<u32>,
    nv_index: Option<serde::de::IgnoredAny>,
    digests: Vec<RecordDigest>,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordDigest {
    hash_alg: String,
    digest: String,
}

#[derive(Default, Deserialize)]
struct Content {
    #[serde(rename = "eventType")]
    kind: Option<String>,
    #[serde(rename = "string")]
    description: Option<String>,
}

/// Each record begins with it.
const RECORD_SEPARATOR: u8 = 0x1e;

impl UserspaceLog {
    /// Reads a log. An empty one is a log: a system that measured nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, UserspaceLogError> {
        if bytes.len() > MAX_LOG {
            return Err(UserspaceLogError::TooLong {
                length: bytes.len(),
            });
        }
        let mut pieces = bytes.split(|byte| *byte == RECORD_SEPARATOR);
        if pieces.next().is_some_and(|before| !before.is_empty()) {
            return Err(UserspaceLogError::Form);
        }
        let mut events = Vec::new();
        let mut offset = 0;
        for (record, text) in pieces.enumerate() {
            if record == MAX_EVENTS {
                return Err(UserspaceLogError::TooManyRecords);
            }
            events.push(read(record, offset, text)?);
            offset += 1 + text.len();
        }
        Ok(Self { events })
    }

    /// The measurements in their order.
    pub fn events(&self) -> &[UserspaceEvent] {
        &self.events
    }
}

impl UserspaceEvent {
    /// The digest of one bank.
    pub fn digest(&self, bank: HashAlgorithm) -> Option<&HashValue> {
        self.digests
            .iter()
            .find(|digest| digest.algorithm() == bank)
    }
}

fn read(record: usize, offset: usize, text: &[u8]) -> Result<UserspaceEvent, UserspaceLogError> {
    let read: Record =
        serde_json::from_slice(text).map_err(|source| UserspaceLogError::Record {
            record,
            offset,
            source,
        })?;
    let pcr = match (read.pcr, read.nv_index) {
        (Some(pcr), None) => u8::try_from(pcr)
            .ok()
            .filter(|pcr| *pcr < PCR_COUNT)
            .map(Some),
        (None, Some(_)) => Some(None),
        _ => None,
    };
    let pcr = pcr.ok_or(UserspaceLogError::Pcr { record, offset })?;
    if read.digests.is_empty() {
        return Err(UserspaceLogError::NoDigest { record, offset });
    }
    let mut digests: Vec<HashValue> = Vec::new();
    for digest in &read.digests {
        // A bank that is not computed here is not replayed either.
        let Ok(bank) = digest.hash_alg.parse() else {
            continue;
        };
        let value = from_hex(bank, &digest.digest)
            .ok()
            .filter(|_| digests.iter().all(|other| other.algorithm() != bank))
            .ok_or(UserspaceLogError::Digest {
                record,
                offset,
                bank,
            })?;
        digests.push(value);
    }
    let content = read.content.unwrap_or_default();
    Ok(UserspaceEvent {
        pcr,
        digests,
        kind: content.kind.unwrap_or_default(),
        description: content.description.unwrap_or_default(),
        offset,
    })
}
