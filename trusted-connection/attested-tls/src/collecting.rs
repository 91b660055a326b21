//! Control messages that come in parts, within what this process has room for.
//!
//! Evidence can have two event logs of many megabytes, and a peer that sends it slowly keeps the memory of
//! what it has sent so far. A message of the length that evidence usually has is each connection's own
//! affair. Longer ones share one allowance of the process: where it is used up, their peers wait, and
//! connections with shorter messages do not.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::ProtocolError;
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
    /// Adds a part to a message that may have `limit` bytes; waits for the allowance if that is needed.
    pub(crate) async fn add(&mut self, part: &[u8], limit: usize) -> Result<(), ProtocolError> {
        let length = self.bytes.len() + part.len();
        let too_long = ProtocolError::MessageTooLong { limit };
        if length > limit {
            return Err(too_long);
        }
        let held = self.held.as_ref().map_or(0, SemaphorePermit::num_permits);
        let needed = length.saturating_sub(OWN).div_ceil(UNIT);
        if let Some(more) = needed.checked_sub(held).filter(|more| *more > 0) {
            let more = u32::try_from(more).map_err(|_| too_long.clone())?;
            let more = ALLOWANCE.acquire_many(more).await.map_err(|_| too_long)?;
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

    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: F) -> Poll<F::Output> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn long_messages_wait_for_each_other_and_short_ones_for_nobody() {
        let part = vec![7; 16 * 1024];
        let mut open: Vec<Collecting> = Vec::new();
        let mut bytes = 0;
        // As many of the longest messages as there is room for, none of which ends.
        let waiting = 'filling: loop {
            assert!(open.len() < 8, "nobody waits");
            let mut message = Collecting::default();
            while message.bytes.len() + part.len() <= MAX_ANSWER {
                if poll(message.add(&part, MAX_ANSWER)).is_pending() {
                    break 'filling message;
                }
                bytes += part.len();
            }
            open.push(message);
        };
        assert!(bytes <= UNITS * UNIT + (open.len() + 1) * OWN, "{bytes}");
        let mut waiting = waiting;

        let mut short = Collecting::default();
        for _ in 0..OWN / part.len() {
            assert_eq!(poll(short.add(&part, MAX_ANSWER)), Poll::Ready(Ok(())));
        }
        assert!(poll(short.add(&part, MAX_ANSWER)).is_pending());

        // What came in is kept while it is judged, and then there is room.
        let (message, held) = open.pop().unwrap().finish();
        drop(message);
        assert!(poll(waiting.add(&part, MAX_ANSWER)).is_pending());
        drop(held);
        assert_eq!(poll(waiting.add(&part, MAX_ANSWER)), Poll::Ready(Ok(())));
    }

    #[test]
    fn a_message_is_not_longer_than_any_there_may_be_now() {
        let mut message = Collecting::default();
        assert_eq!(poll(message.add(&[7; 512], 512)), Poll::Ready(Ok(())));
        assert_eq!(
            poll(message.add(&[7], 512)),
            Poll::Ready(Err(ProtocolError::MessageTooLong { limit: 512 }))
        );
    }
}
