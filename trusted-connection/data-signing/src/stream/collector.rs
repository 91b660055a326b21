//! The batch that fills while the one before is signed.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use signed_data::stream::{MAX_READINGS_BYTES, Span};

use crate::stream::framing::FramingError;

/// One batch, between the thread that takes readings in and the one that signs.
#[derive(Debug)]
pub struct Collector {
    most: usize,
    time: Duration,
    filling: Mutex<Filling>,
    changed: Condvar,
}

/// Readings that are signed together.
#[derive(Debug)]
pub struct Collected {
    /// In their order; at least one.
    pub readings: Vec<Vec<u8>>,
    /// When the first and the last came.
    pub span: Span,
}

#[derive(Debug, Default)]
struct Filling {
    readings: Vec<Vec<u8>>,
    bytes: usize,
    span: Option<Span>,
    /// When the first came, by a clock that is not set.
    since: Option<Instant>,
    /// No more come; the error is told when all that came before is signed.
    ended: bool,
    error: Option<FramingError>,
    /// A reading waits that has no room.
    crowded: bool,
}

impl Collector {
    /// A batch is ready with so many readings, or when its first has waited for so long.
    pub fn new(most: usize, time: Duration) -> Self {
        Self {
            most,
            time,
            filling: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Adds a reading; waits while the batch is full. Once the stream has [ended](Self::end), nothing is added.
    pub fn add(&self, reading: Vec<u8>) {
        let mut filling = self.lock();
        while !filling.ended && self.is_full_for(&filling, reading.len()) {
            filling.crowded = true;
            self.changed.notify_all();
            filling = self.wait(filling);
        }
        if filling.ended {
            return;
        }
        let now = milliseconds_now();
        let span = filling.span.get_or_insert(Span { from: now, to: now });
        span.to = now.max(span.from);
        filling.since.get_or_insert_with(Instant::now);
        filling.bytes = filling.bytes.saturating_add(reading.len());
        filling.readings.push(reading);
        // Who signs waits for the first, and then until it is full or late.
        if filling.readings.len() == 1 || self.is_full_for(&filling, 0) {
            self.changed.notify_all();
        }
    }

    /// No more readings come: what is there is signed, and then the error is told, if it is for one.
    pub fn end(&self, error: Option<FramingError>) {
        let mut filling = self.lock();
        if !filling.ended {
            filling.ended = true;
            filling.error = error;
        }
        self.changed.notify_all();
    }

    /// Waits for a batch that is ready, and takes it; `None` when all are signed.
    pub fn take(&self) -> Result<Option<Collected>, FramingError> {
        let mut filling = self.lock();
        loop {
            let left = match filling.since {
                None if filling.ended => return filling.error.take().map_or(Ok(None), Err),
                None => None,
                Some(since) => Some(self.time.saturating_sub(since.elapsed())),
            };
            let full = self.is_full_for(&filling, 0) || filling.crowded;
            match left {
                Some(left) if full || filling.ended || left.is_zero() => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(filling, left);
                    filling = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => filling = self.wait(filling),
            }
        }
        let taken = Filling {
            ended: filling.ended,
            error: filling.error.take(),
            ..Filling::default()
        };
        let taken = mem::replace(&mut *filling, taken);
        self.changed.notify_all();
        Ok(taken.span.map(|span| Collected {
            readings: taken.readings,
            span,
        }))
    }

    /// How many readings wait to be signed, and whether one more waits for room.
    pub fn waiting(&self) -> (usize, bool) {
        let filling = self.lock();
        (filling.readings.len(), filling.crowded)
    }

    fn is_full_for(&self, filling: &Filling, more: usize) -> bool {
        filling.readings.len() >= self.most
            || filling.bytes.saturating_add(more) > MAX_READINGS_BYTES
    }

    fn wait<'a>(&self, filling: MutexGuard<'a, Filling>) -> MutexGuard<'a, Filling> {
        (self.changed.wait(filling)).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Filling> {
        (self.filling.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

/// By this machine's clock; 0 before 1970.
fn milliseconds_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
