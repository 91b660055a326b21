//! The queue before the one thread that may talk to the TPM.
//!
//! What is more urgent goes first: quotes, because a verifier waits for them, then bulk work, then
//! what can wait. But after so many requests of one kind in a row, [`QUOTES_IN_A_ROW`] of the first,
//! a less urgent one gets its turn, so that none starves.

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
    /// What can wait, and is needed all the same: certificates of TLS keys.
    Later,
    /// What can wait until there is nothing else to do: certificates of endorsement keys.
    Background,
}

/// Requests that wait.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// By priority, the most urgent first.
    lines: [Line<J>; 4],
    closed: bool,
}

/// Requests of one priority.
struct Line<J> {
    jobs: VecDeque<J>,
    in_a_row: u32,
    /// After so many, a less urgent one has its turn, if one waits.
    most_in_a_row: u32,
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
/// Certificates of TLS keys, before one that hardly any guest reads.
pub(super) const LATER_IN_A_ROW: u32 = 16;

impl<J> Queue<J> {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                lines: [QUOTES_IN_A_ROW, BULK_IN_A_ROW, LATER_IN_A_ROW, u32::MAX].map(Line::new),
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
        let [quotes, bulk, later, background] = &mut state.lines;
        let (line, queue, limit) = match priority {
            Priority::Quote => (quotes, "quotes", MAX_QUOTES),
            Priority::Bulk => (bulk, "requests", MAX_BULK),
            Priority::Later => (later, "requests", MAX_BULK),
            Priority::Background => (background, "requests", MAX_BULK),
        };
        if line.jobs.len() >= limit {
            return Err(AnchorError::Busy { queue, limit });
        }
        line.jobs.push_back(job);
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
            if let Some(job) = take(&mut state.lines) {
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
        let dropped = (state.lines.each_mut()).map(|line| mem::take(&mut line.jobs));
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        let state = self.lock();
        state.lines.iter().map(|line| line.jobs.len()).sum()
    }

    /// No code that can panic runs under the lock, so its state is sound even if poisoned.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Line<J> {
    fn new(most_in_a_row: u32) -> Self {
        Self {
            jobs: VecDeque::new(),
            in_a_row: 0,
            most_in_a_row,
        }
    }
}

/// The next request of these lines.
fn take<J>(lines: &mut [Line<J>]) -> Option<J> {
    let (first, others) = lines.split_first_mut()?;
    let others_wait = others.iter().any(|line| !line.jobs.is_empty());
    let others_are_due = others_wait && first.in_a_row >= first.most_in_a_row;
    if !others_are_due && let Some(job) = first.jobs.pop_front() {
        first.in_a_row = first.in_a_row.saturating_add(1);
        return Some(job);
    }
    first.in_a_row = 0;
    take(others)
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
    fn what_can_wait_goes_before_the_background_which_does_not_starve() -> Result<(), AnchorError> {
        let queue = Queue::new();
        queue.push(Priority::Background, 'e')?;
        queue.push(Priority::Background, 'e')?;
        for _ in 0..LATER_IN_A_ROW + 2 {
            queue.push(Priority::Later, 't')?;
        }
        queue.push(Priority::Bulk, 'b')?;
        let order: String = (0..LATER_IN_A_ROW + 5)
            .filter_map(|_| queue.next())
            .collect();
        assert_eq!(order, format!("b{}ette", "t".repeat(16)));
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
            while queue.waiting() > 0 {
                std::thread::yield_now();
            }
            queue.close();
            assert!(matches!(worker.join(), Ok((Some(1), None))));
        });
    }
}
