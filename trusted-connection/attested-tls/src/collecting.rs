//! Control messages that come in parts, within what this process has room for.
//!
//! Evidence can have two event logs of many megabytes, and a peer that sends it slowly keeps the memory of
//! what it has sent so far. A message of the length that evidence usually has is each connection's own
//! affair. Longer ones share one allowance of the process: where it is used up, the connection of the next is
//! closed, and its peer may come again. It does not wait with what it has: messages of which each has a part
//! of the allowance would wait for each other.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{ConnectionError, ProtocolError};
use crate::message::MAX_ANSWER;

/// Bytes of a message that come out of no allowance.
const OWN: usize = 256 * 1024;
/// The allowance is counted in so many bytes.
const UNIT: usize = 1024;
/// What all messages of this process may have beyond [`OWN`], in units: 64 MiB.
const UNITS: usize = 64 * 1024;

/// Otherwise the longest message could never come.
const _: () = assert!(MAX_ANSWER.div_ceil(UNIT) < UNITS);

static ALLOWANCE: Semaphore = Semaphore::const_new(UNITS);

/// What a message has of the allowance, given back when it is dropped.
pub(crate) type Held = Option<SemaphorePermit<'static>>;

/// A message of which the last part has not come.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    bytes: Vec<u8>,
    held: Held,
}

impl Collecting {
    /// Adds a part to a message that may have `limit` bytes.
    pub(crate) fn add(&mut self, part: &[u8], limit: usize) -> Result<(), ConnectionError> {
        let length = self.bytes.len() + part.len();
        if length > limit {
            return Err(ProtocolError::MessageTooLong { limit }.into());
        }
        let held = self.held.as_ref().map_or(0, SemaphorePermit::num_permits);
        let needed = length.saturating_sub(OWN).div_ceil(UNIT);
        if let Some(more) = needed.checked_sub(held).filter(|more| *more > 0) {
            let more = u32::try_from(more).map_err(|_| ConnectionError::NoRoom)?;
            let more = ALLOWANCE
                .try_acquire_many(more)
                .map_err(|_| ConnectionError::NoRoom)?;
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// The message, whose last part has come, and what it has of the allowance for as long as what was
    /// in it is kept.
    pub(crate) fn finish(&mut self) -> (Vec<u8>, Held) {
        (std::mem::take(&mut self.bytes), self.held.take())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::error::CloseReason;

    #[test]
    fn long_messages_share_what_there_is_and_short_ones_need_none_of_it() {
        let part = vec![7; 16 * 1024];
        let mut open: Vec<Collecting> = Vec::new();
        let mut bytes = 0;
        // As many of the longest messages as there is room for, none of which ends.
        let refused = 'filling: loop {
            assert!(open.len() < 8, "nobody is refused");
            let mut message = Collecting::default();
            while message.bytes.len() + part.len() <= MAX_ANSWER {
                if let Err(error) = message.add(&part, MAX_ANSWER) {
                    break 'filling error;
                }
                bytes += part.len();
            }
            open.push(message);
        };
        assert!(matches!(refused, ConnectionError::NoRoom), "{refused:?}");
        assert_eq!(refused.to_tell(), Some(CloseReason::Busy));
        assert!(bytes <= UNITS * UNIT + (open.len() + 1) * OWN, "{bytes}");

        // What the refused one had is free again with it, and then used up.
        let mut next = Collecting::default();
        while next.add(&part, MAX_ANSWER).is_ok() {}
        assert!(next.bytes.len() >= OWN);
        let mut short = Collecting::default();
        for _ in 0..OWN / part.len() {
            short.add(&part, MAX_ANSWER).unwrap();
        }
        assert!(short.add(&part, MAX_ANSWER).is_err());

        // What came in is kept while it is judged, and then there is room.
        let (message, held) = open.pop().unwrap().finish();
        drop(message);
        assert!(short.add(&part, MAX_ANSWER).is_err());
        drop(held);
        short.add(&part, MAX_ANSWER).unwrap();
    }

    #[test]
    fn a_message_is_not_longer_than_any_there_may_be_now() {
        let mut message = Collecting::default();
        message.add(&[7; 512], 512).unwrap();
        assert!(matches!(
            message.add(&[7], 512),
            Err(ConnectionError::Protocol(ProtocolError::MessageTooLong {
                limit: 512
            }))
        ));
    }
}
