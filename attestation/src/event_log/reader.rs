//! Reading little-endian fields, as firmware writes them, with the place for messages.

use super::EventLogError;

/// What is left of a log, and the event that is being read.
pub(super) struct Reader<'b> {
    rest: &'b [u8],
    length: usize,
    /// The event's number, from zero.
    pub(super) event: usize,
    /// Where it starts.
    pub(super) offset: usize,
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self {
            rest: bytes,
            length: bytes.len(),
            event: 0,
            offset: 0,
        }
    }

    /// Goes on to the next event.
    pub(super) fn next_event(&mut self) {
        self.event += 1;
        self.offset = self.length - self.rest.len();
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The byte that everything left consists of, if it is what log areas are filled with. So few
    /// of them that an event could begin so (of PCR 0, or a note without a PCR) are not taken for
    /// fill: a log that was cut off there would pass for whole.
    pub(super) fn filler(&self) -> Option<u8> {
        const PCR_FIELD: usize = 4;
        if self.rest.len() <= PCR_FIELD {
            return None;
        }
        let first = *self.rest.first()?;
        let is_filler = matches!(first, 0x00 | 0xff) && self.rest.iter().all(|byte| *byte == first);
        is_filler.then_some(first)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'b [u8], EventLogError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(EventLogError::Truncated {
                event: self.event,
                offset: self.offset,
                needed: length,
                left: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, EventLogError> {
        let bytes = self.take(2)?;
        Ok(bytes.first_chunk().map_or(0, |b| u16::from_le_bytes(*b)))
    }

    pub(super) fn u32(&mut self) -> Result<u32, EventLogError> {
        let bytes = self.take(4)?;
        Ok(bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b)))
    }

    /// Bytes with their length in 32 bits before them.
    pub(super) fn sized(&mut self) -> Result<&'b [u8], EventLogError> {
        let length = self.u32()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}
