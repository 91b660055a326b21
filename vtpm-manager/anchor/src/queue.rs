//! The queue before the one thread that may talk to the TPM.
//!
//! Quotes go first, because a verifier waits for them; but after [`QUOTES_IN_A_ROW`] quotes one
//! piece of bulk work gets its turn, so that neither starves. Work in the background is done when
//! there is nothing else, and after [`BULK_IN_A_ROW`] pieces of bulk work.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::error::AnchorError;

/// How urgent a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// Somebody waits for evidence.
    Quote,
    /// Sealing, certificates, provisioning.
    Bulk,
    /// What can wait until there is nothing else to do: certificates of endorsement keys.
    Background,
}

/// Requests that wait.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    quotes: VecDeque<J>,
    bulk: VecDeque<J>,
    background: VecDeque<J>,
    quotes_in_a_row: u32,
    bulk_in_a_row: u32,
    closed: bool,
}

/// One host quote serves all requests that came while the previous one was made: more than a
/// few waiting is a fault of the caller.
pub const MAX_QUOTES: usize = 64;
/// A certificate takes up to 200 ms in a slow TPM: this is some three minutes of work.
pub const MAX_BULK: usize = 1024;
/// With quotes alone waiting, bulk work still gets a ninth of the TPM.
pub(super) const QUOTES_IN_A_ROW: u32 = 8;
/// Bulk work is mostly quick, and what is done in the background are signatures: one in so many is
/// enough that they come to their end on a host that is never at rest.
pub(super) const BULK_IN_A_ROW: u32 = 64;

impl<J> Queue<J> {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                quotes: VecDeque::new(),
                bulk: VecDeque::new(),
                background: VecDeque::new(),
                quotes_in_a_row: 0,
                bulk_in_a_row: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds a request, unless too many wait already.
    pub(super) fn push(&self, priority: Priority, job: J) -> Result<(), AnchorError> {
        let mut state = self.lock();
        if state.closed {
            return Err(AnchorError::Stopped);
        }
        let (waiting, queue, limit) = match priority {
            Priority::Quote => (&mut state.quotes, "quotes", MAX_QUOTES),
            Priority::Bulk => (&mut state.bulk, "requests", MAX_BULK),
            Priority::Background => (&mut state.background, "requests", MAX_BULK),
        };
        if waiting.len() >= limit {
            return Err(AnchorError::Busy { queue, limit });
        }
        waiting.push_back(job);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next request; waits for one. `None` once the queue is closed.
    pub(super) fn next(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.take() {
                return Some(job);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the queue: what still waits is dropped, and its askers learn that it is not answered.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = (
            mem::take(&mut state.quotes),
            mem::take(&mut state.bulk),
            mem::take(&mut state.background),
        );
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.quotes.len() + state.bulk.len() + state.background.len()
    }

    /// No code that can panic runs under the lock, so its state is sound even if poisoned.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> State<J> {
    fn take(&mut self) -> Option<J> {
        let others_wait = !self.bulk.is_empty() || !self.background.is_empty();
        let others_are_due = self.quotes_in_a_row >= QUOTES_IN_A_ROW && others_wait;
        if !others_are_due && let Some(job) = self.quotes.pop_front() {
            self.quotes_in_a_row = self.quotes_in_a_row.saturating_add(1);
            return Some(job);
        }
        self.quotes_in_a_row = 0;
        let background_is_due = self.bulk_in_a_row >= BULK_IN_A_ROW && !self.background.is_empty();
        if !background_is_due && let Some(job) = self.bulk.pop_front() {
            self.bulk_in_a_row = self.bulk_in_a_row.saturating_add(1);
            return Some(job);
        }
        self.bulk_in_a_row = 0;
        self.background.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_go_first_but_bulk_work_gets_its_turn() -> Result<(), AnchorError> {
        let queue = Queue::new();
        queue.push(Priority::Bulk, 'b')?;
        queue.push(Priority::Bulk, 'b')?;
        for _ in 0..20 {
            queue.push(Priority::Quote, 'q')?;
        }
        let order: String = (0..22).filter_map(|_| queue.next()).collect();
        assert_eq!(order, "qqqqqqqqbqqqqqqqqbqqqq");
        Ok(())
    }

    #[test]
    fn the_background_waits_for_everything_else_but_does_not_starve() -> Result<(), AnchorError> {
        let queue = Queue::new();
        for job in ['1', '2', '3'] {
            queue.push(Priority::Background, job)?;
        }
        queue.push(Priority::Quote, 'q')?;
        for _ in 0..BULK_IN_A_ROW + 2 {
            queue.push(Priority::Bulk, 'b')?;
        }
        let order: String = (0..BULK_IN_A_ROW + 6)
            .filter_map(|_| queue.next())
            .collect();
        assert_eq!(order, format!("q{}1bb23", "b".repeat(64)));
        Ok(())
    }

    #[test]
    fn a_full_queue_says_so_and_the_other_one_stays_open() -> Result<(), AnchorError> {
        let queue = Queue::new();
        for _ in 0..MAX_QUOTES {
            queue.push(Priority::Quote, ())?;
        }
        assert!(matches!(
            queue.push(Priority::Quote, ()),
            Err(AnchorError::Busy {
                limit: MAX_QUOTES,
                ..
            })
        ));
        queue.push(Priority::Bulk, ())
    }

    #[test]
    fn a_closed_queue_gives_out_nothing_and_takes_nothing() -> Result<(), AnchorError> {
        let queue = Queue::new();
        queue.push(Priority::Bulk, ())?;
        queue.close();
        assert!(queue.next().is_none());
        assert!(matches!(
            queue.push(Priority::Quote, ()),
            Err(AnchorError::Stopped)
        ));
        Ok(())
    }

    #[test]
    fn a_waiting_thread_is_woken_by_work_and_by_the_end() {
        let queue = Queue::new();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| (queue.next(), queue.next()));
            assert!(queue.push(Priority::Quote, 1).is_ok());
            while !queue.lock().quotes.is_empty() {
                std::thread::yield_now();
            }
            queue.close();
            assert!(matches!(worker.join(), Ok((Some(1), None))));
        });
    }
}
