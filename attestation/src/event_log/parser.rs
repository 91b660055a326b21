//! Reading a log, with bounds.

use cert_chain::{HashAlgorithm, HashValue};

use super::error::MAX_ALGORITHMS;
use super::reader::Reader;
use super::{Event, EventLog, EventLogError, EventType, MAX_EVENTS, MAX_LOG, PCR_COUNT};

/// Signature of the header of a crypto-agile log (PFP §10.4.5.1).
const SPEC_ID_03: &[u8] = b"Spec ID Event03\0";
/// Signature of the note about the locality of `TPM2_Startup` (PFP §10.4.5.3).
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";
/// Localities 0 to 4 (TCG PC Client Platform TPM Profile §3.2).
const MAX_LOCALITY: u8 = 4;

/// The number of a PCR and a type, with which a log begins, are no text of this length.
const TEXT: usize = 8;

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
    if let Some(byte) = reader.filler() {
        return Err(EventLogError::Filler { byte });
    }
    if bytes
        .iter()
        .take(TEXT)
        .all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'))
    {
        return Err(EventLogError::Text);
    }
    let first = read_sha1_event(&mut reader)?;
    let banks = if first.is_measured() {
        None
    } else {
        read_banks(&first.data)?
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
    while !reader.is_at_end() && reader.filler().is_none() {
        reader.next_event();
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
        if !event.is_measured()
            && let Some(noted) = event.data.strip_prefix(STARTUP_LOCALITY)
        {
            // The locality is one byte; some firmware has more behind it, up to a round length.
            let locality = noted
                .first()
                .copied()
                .filter(|noted| *noted <= MAX_LOCALITY);
            if locality.is_none() || self.startup_locality.is_some_and(|l| Some(l) != locality) {
                return Err(EventLogError::StartupLocality {
                    event: reader.event,
                    offset: reader.offset,
                });
            }
            self.startup_locality = locality;
        }
        self.events.push(event);
        Ok(())
    }
}

/// `TCG_PCClientPCREvent` (PFP §10.1).
fn read_sha1_event(reader: &mut Reader<'_>) -> Result<Event, EventLogError> {
    let (pcr, event_type) = read_place(reader)?;
    let digest = reader.take(HashAlgorithm::Sha1.digest_length())?;
    let data = reader.sized()?.to_vec();
    // Zeros that more than zeros follow: what fills a log's area, and not what anybody measured.
    let is_blank = pcr == 0 && event_type == EventType::PREBOOT_CERT && data.is_empty();
    if is_blank && digest.iter().all(|byte| *byte == 0) {
        return Err(EventLogError::NoEvent {
            event: reader.event,
            offset: reader.offset,
        });
    }
    Ok(Event {
        pcr,
        event_type,
        digests: HashValue::new(HashAlgorithm::Sha1, digest)
            .into_iter()
            .collect(),
        data,
        offset: reader.offset,
    })
}

/// `TCG_PCR_EVENT2` (PFP §10.2).
fn read_event(reader: &mut Reader<'_>, banks: &[Bank]) -> Result<Event, EventLogError> {
    let (pcr, event_type) = read_place(reader)?;
    let count = reader.u32()?;
    let fits = usize::try_from(count).is_ok_and(|count| count <= banks.len());
    // A measurement that no digest tells of leaves its PCR unknown in all banks.
    let tells_nothing = count == 0 && event_type != EventType::NO_ACTION;
    if !fits || tells_nothing {
        return Err(EventLogError::DigestCount {
            event: reader.event,
            offset: reader.offset,
            found: count,
            announced: banks.len(),
        });
    }
    let mut seen = Vec::new();
    let mut digests = Vec::new();
    for _ in 0..count {
        let identifier = reader.u16()?;
        let bank = banks.iter().find(|bank| bank.identifier == identifier);
        // Two digests of one bank would leave open which of them was extended.
        let (Some(bank), false) = (bank, seen.contains(&identifier)) else {
            return Err(EventLogError::Algorithm {
                event: reader.event,
                offset: reader.offset,
                algorithm: identifier,
            });
        };
        seen.push(identifier);
        let digest = reader.take(bank.length)?;
        digests.extend(
            HashAlgorithm::from_identifier(identifier)
                .and_then(|algorithm| HashValue::new(algorithm, digest)),
        );
    }
    Ok(Event {
        pcr,
        event_type,
        digests,
        data: reader.sized()?.to_vec(),
        offset: reader.offset,
    })
}

/// The PCR and the type. Notes can carry any number instead of a PCR, 0xffffffff most often (PFP
/// §10.4.5): they extend nothing.
fn read_place(reader: &mut Reader<'_>) -> Result<(u32, EventType), EventLogError> {
    let (event, offset) = (reader.event, reader.offset);
    let pcr = reader.u32()?;
    let event_type = EventType(reader.u32()?);
    if pcr < u32::from(PCR_COUNT) || event_type == EventType::NO_ACTION {
        Ok((pcr, event_type))
    } else {
        Err(EventLogError::Pcr { event, offset, pcr })
    }
}

/// `TCG_EfiSpecIDEvent` (PFP §10.4.5.1), or `None` if the event is something else. What its maker
/// adds behind the list says nothing about the events.
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
