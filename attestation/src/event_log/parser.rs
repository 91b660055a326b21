//! Reading a log, with bounds.

use super::{Event, EventLog, EventType, HashAlgorithm, PCR_COUNT};

/// Why bytes are not an event log.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventLogError {
    /// A bank that the log's header does not announce.
    #[error(
        "event {event} (offset {offset}) has a digest of algorithm 0x{algorithm:04x}, which the header does not announce"
    )]
    Algorithm {
        /// The event, from zero.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// `TPM_ALG_ID`.
        algorithm: u16,
    },
    /// A header that announces impossible banks.
    #[error(
        "the header announces {count} hash algorithms (1 to {MAX_ALGORITHMS} are possible) or one of the wrong length"
    )]
    Algorithms {
        /// Number of algorithms announced.
        count: u32,
    },
    /// An event without one digest for each bank.
    #[error("event {event} (offset {offset}) has {found} digests, the header announces {expected}")]
    DigestCount {
        /// The event, from zero.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// Digests stated.
        found: u32,
        /// Digests announced.
        expected: usize,
    },
    /// Nothing at all.
    #[error("the log is empty")]
    Empty,
    /// A PCR that no TPM has.
    #[error("event {event} (offset {offset}) names PCR {pcr}: there are {PCR_COUNT}")]
    Pcr {
        /// The event, from zero.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// The number found.
        pcr: u32,
    },
    /// A note about the locality of `TPM2_Startup` that cannot be, or a second one.
    #[error("event {event} (offset {offset}) notes an impossible or a second startup locality")]
    StartupLocality {
        /// The event, from zero.
        event: usize,
        /// Where it starts.
        offset: usize,
    },
    /// Longer than any log.
    #[error("{length} bytes are more than an event log can have ({MAX_LOG})")]
    TooLong {
        /// Number of bytes given.
        length: usize,
    },
    /// More events than any boot has.
    #[error("the log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// The bytes end within an event.
    #[error(
        "the log ends within event {event} (offset {offset}): {needed} more bytes are needed, {left} are left"
    )]
    Truncated {
        /// The event, from zero.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// Length of the next field.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
}

/// Servers with many option ROMs write logs of about 100 KiB.
pub const MAX_LOG: usize = 256 * 1024;
/// The shortest event has 32 bytes; real boots have a few hundred.
pub const MAX_EVENTS: usize = 8192;
/// The algorithm registry has six hash algorithms for PCR banks.
const MAX_ALGORITHMS: u32 = 8;

/// Signature of the header of a crypto-agile log (PFP §10.4.5.1).
const SPEC_ID_03: &[u8] = b"Spec ID Event03\0";
/// Signature of the note about the locality of `TPM2_Startup` (PFP §10.4.5.3).
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";

/// Localities 0 to 4 (TCG PC Client Platform TPM Profile §3.2).
const MAX_LOCALITY: u8 = 4;

/// A bank as the header announces it; one that cannot be replayed is skipped over.
struct Bank {
    identifier: u16,
    length: usize,
}

pub(super) fn parse(bytes: &[u8]) -> Result<EventLog, EventLogError> {
    if bytes.is_empty() {
        return Err(EventLogError::Empty);
    }
    if bytes.len() > MAX_LOG {
        return Err(EventLogError::TooLong {
            length: bytes.len(),
        });
    }
    let mut reader = Reader::new(bytes);
    let first = read_sha1_event(&mut reader)?;
    let banks = if first.event_type == EventType::NO_ACTION {
        read_banks(&first.data)?
    } else {
        None
    };
    let mut log = EventLog {
        algorithms: match &banks {
            Some(banks) => banks
                .iter()
                .filter_map(|bank| HashAlgorithm::from_identifier(bank.identifier))
                .collect(),
            None => vec![HashAlgorithm::Sha1],
        },
        events: Vec::new(),
        startup_locality: None,
    };
    log.add(first, &reader)?;
    while !reader.rest.is_empty() {
        reader.event += 1;
        reader.event_offset = bytes.len() - reader.rest.len();
        let event = match &banks {
            Some(banks) => read_event(&mut reader, banks)?,
            None => read_sha1_event(&mut reader)?,
        };
        log.add(event, &reader)?;
    }
    Ok(log)
}

impl EventLog {
    fn add(&mut self, event: Event, reader: &Reader<'_>) -> Result<(), EventLogError> {
        if self.events.len() == MAX_EVENTS {
            return Err(EventLogError::TooManyEvents);
        }
        if event.event_type == EventType::NO_ACTION
            && let Some(locality) = event.data.strip_prefix(STARTUP_LOCALITY)
        {
            match *locality {
                [locality @ 0..=MAX_LOCALITY] if self.startup_locality.is_none() => {
                    self.startup_locality = Some(locality);
                }
                _ => {
                    return Err(EventLogError::StartupLocality {
                        event: reader.event,
                        offset: reader.event_offset,
                    });
                }
            }
        }
        self.events.push(event);
        Ok(())
    }
}

/// `TCG_PCClientPCREvent` (PFP §10.1).
fn read_sha1_event(reader: &mut Reader<'_>) -> Result<Event, EventLogError> {
    let pcr = reader.pcr()?;
    let event_type = EventType(reader.u32()?);
    let digest = reader.take(HashAlgorithm::Sha1.digest_length())?.to_vec();
    let data = reader.sized()?.to_vec();
    Ok(Event {
        pcr,
        event_type,
        digests: vec![(HashAlgorithm::Sha1, digest)],
        data,
    })
}

/// `TCG_PCR_EVENT2` (PFP §10.2).
fn read_event(reader: &mut Reader<'_>, banks: &[Bank]) -> Result<Event, EventLogError> {
    let pcr = reader.pcr()?;
    let event_type = EventType(reader.u32()?);
    let count = reader.u32()?;
    if usize::try_from(count).ok() != Some(banks.len()) {
        return Err(EventLogError::DigestCount {
            event: reader.event,
            offset: reader.event_offset,
            found: count,
            expected: banks.len(),
        });
    }
    let mut digests: Vec<(HashAlgorithm, Vec<u8>)> = Vec::new();
    for _ in banks {
        let identifier = reader.u16()?;
        let unannounced = EventLogError::Algorithm {
            event: reader.event,
            offset: reader.event_offset,
            algorithm: identifier,
        };
        let bank = banks
            .iter()
            .find(|bank| bank.identifier == identifier)
            .ok_or_else(|| unannounced.clone())?;
        let digest = reader.take(bank.length)?;
        if let Some(algorithm) = HashAlgorithm::from_identifier(identifier) {
            // Two digests of one bank would leave open which of them was extended.
            if digests.iter().any(|(other, _)| *other == algorithm) {
                return Err(unannounced);
            }
            digests.push((algorithm, digest.to_vec()));
        }
    }
    let data = reader.sized()?.to_vec();
    Ok(Event {
        pcr,
        event_type,
        digests,
        data,
    })
}

/// `TCG_EfiSpecIDEvent` (PFP §10.4.5.1), or `None` if the event is something else.
fn read_banks(data: &[u8]) -> Result<Option<Vec<Bank>>, EventLogError> {
    let Some(rest) = data.strip_prefix(SPEC_ID_03) else {
        return Ok(None);
    };
    let mut reader = Reader::new(rest);
    // Platform class, three version bytes and the size of a machine word.
    reader.take(8)?;
    let count = reader.u32()?;
    let refused = EventLogError::Algorithms { count };
    if !(1..=MAX_ALGORITHMS).contains(&count) {
        return Err(refused);
    }
    let mut banks: Vec<Bank> = Vec::new();
    for _ in 0..count {
        let identifier = reader.u16()?;
        let length = usize::from(reader.u16()?);
        let right_length = HashAlgorithm::from_identifier(identifier)
            .is_none_or(|algorithm| algorithm.digest_length() == length);
        let repeated = banks.iter().any(|bank| bank.identifier == identifier);
        if !right_length || repeated {
            return Err(refused);
        }
        banks.push(Bank { identifier, length });
    }
    Ok(Some(banks))
}

/// Little-endian fields, as firmware writes them.
struct Reader<'b> {
    rest: &'b [u8],
    event: usize,
    event_offset: usize,
}

impl<'b> Reader<'b> {
    fn new(rest: &'b [u8]) -> Self {
        Self {
            rest,
            event: 0,
            event_offset: 0,
        }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], EventLogError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(EventLogError::Truncated {
                event: self.event,
                offset: self.event_offset,
                needed: length,
                left: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, EventLogError> {
        let bytes = self.take(2)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, EventLogError> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn sized(&mut self) -> Result<&'b [u8], EventLogError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn pcr(&mut self) -> Result<u8, EventLogError> {
        let pcr = self.u32()?;
        // Notes may carry 0xffffffff instead of a PCR (PFP §10.4.5).
        const NO_PCR: u32 = u32::MAX;
        match u8::try_from(pcr) {
            Ok(pcr) if pcr < PCR_COUNT => Ok(pcr),
            _ if pcr == NO_PCR && self.next_is_note() => Ok(0),
            _ => Err(EventLogError::Pcr {
                event: self.event,
                offset: self.event_offset,
                pcr,
            }),
        }
    }

    fn next_is_note(&self) -> bool {
        self.rest.get(..4) == Some(EventType::NO_ACTION.0.to_le_bytes().as_slice())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::HashAlgorithm;
    use super::*;

    fn sha1_event(pcr: u32, event_type: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = pcr.to_le_bytes().to_vec();
        bytes.extend(event_type.to_le_bytes());
        bytes.extend([0x11; 20]);
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn header(banks: &[(u16, u16)]) -> Vec<u8> {
        let mut data = SPEC_ID_03.to_vec();
        data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
        data.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
        for (identifier, length) in banks {
            data.extend(identifier.to_le_bytes());
            data.extend(length.to_le_bytes());
        }
        data.push(0);
        sha1_event(0, 3, &data)
    }

    fn event(pcr: u32, digests: &[(u16, Vec<u8>)], data: &[u8]) -> Vec<u8> {
        let mut bytes = pcr.to_le_bytes().to_vec();
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(u32::try_from(digests.len()).unwrap().to_le_bytes());
        for (identifier, digest) in digests {
            bytes.extend(identifier.to_le_bytes());
            bytes.extend(digest);
        }
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn a_log_with_sha1_alone_is_read() {
        let log = parse(&sha1_event(4, 5, b"boot")).unwrap();
        assert_eq!(log.algorithms(), [HashAlgorithm::Sha1]);
        assert_eq!(log.events().len(), 1);
    }

    #[test]
    fn a_crypto_agile_log_is_read_and_unknown_banks_are_skipped() {
        let mut bytes = header(&[(0x0004, 20), (0x000b, 32), (0x0012, 32)]);
        bytes.extend(event(
            7,
            &[
                (0x0004, vec![1; 20]),
                (0x000b, vec![2; 32]),
                (0x0012, vec![3; 32]),
            ],
            b"data",
        ));
        let log = parse(&bytes).unwrap();
        assert_eq!(
            log.algorithms(),
            [HashAlgorithm::Sha1, HashAlgorithm::Sha256]
        );
        let event = log.events().last().unwrap();
        assert_eq!(
            event.digest(HashAlgorithm::Sha256),
            Some([2; 32].as_slice())
        );
        assert_eq!(event.data, b"data");
    }

    #[test]
    fn the_startup_locality_is_where_pcr_0_begins_and_is_noted_once() {
        let note = |locality: &[u8]| sha1_event(0, 3, &[STARTUP_LOCALITY, locality].concat());
        let log = parse(&note(&[3])).unwrap();
        let mut start = [0; 32];
        start[31] = 3;
        assert_eq!(log.replay_sha256().value(0), start.into());
        let twice = [note(&[3]), note(&[0])].concat();
        for bytes in [note(&[5]), note(&[]), note(&[3, 0]), twice] {
            assert!(matches!(
                parse(&bytes),
                Err(EventLogError::StartupLocality { .. })
            ));
        }
    }

    #[test]
    fn every_truncation_of_a_log_is_refused_or_ends_at_an_event() {
        let mut bytes = header(&[(0x000b, 32)]);
        let first = bytes.len();
        bytes.extend(event(7, &[(0x000b, vec![2; 32])], b"data"));
        for length in 1..bytes.len() {
            assert_eq!(parse(bytes.get(..length).unwrap()).is_ok(), length == first);
        }
    }

    #[test]
    fn impossible_fields_are_refused() {
        let with = |more: Vec<u8>| parse(&[header(&[(0x000b, 32)]), more].concat());
        assert!(matches!(
            with(event(24, &[(0x000b, vec![2; 32])], b"")),
            Err(EventLogError::Pcr { pcr: 24, .. })
        ));
        assert!(matches!(
            with(event(1, &[(0x0004, vec![2; 20])], b"")),
            Err(EventLogError::Algorithm {
                algorithm: 0x0004,
                ..
            })
        ));
        assert!(matches!(
            with(event(1, &[], b"")),
            Err(EventLogError::DigestCount { found: 0, .. })
        ));
        assert!(matches!(
            parse(&header(&[(0x000b, 20)])),
            Err(EventLogError::Algorithms { .. })
        ));
        assert!(matches!(
            parse(&header(&[])),
            Err(EventLogError::Algorithms { .. })
        ));
        assert!(matches!(
            parse(&vec![0; MAX_LOG + 1]),
            Err(EventLogError::TooLong { .. })
        ));
        assert_eq!(parse(&[]), Err(EventLogError::Empty));
    }

    #[test]
    fn a_stated_length_beyond_the_log_costs_no_memory() {
        let mut bytes = sha1_event(0, 1, b"");
        let length = bytes.len();
        bytes
            .get_mut(length - 4..)
            .unwrap()
            .copy_from_slice(&[0xff; 4]);
        assert!(matches!(
            parse(&bytes),
            Err(EventLogError::Truncated { .. })
        ));
    }
}
