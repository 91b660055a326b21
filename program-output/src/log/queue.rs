//! Lines that wait to be written, as many as there is room for, and the count of those that are
//! missing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Line, NOTICE};

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// It was written.
    Done,
    /// It cannot be taken now, and stays.
    Later,
    /// It cannot be taken, and is lost.
    Lost,
}

/// Lines that are missing from a log since its program was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// There was no room for them, or writing them failed.
    pub lost: u64,
    /// They were too many of their kind.
    pub left_out: u64,
}

#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    inner: Mutex<Inner>,
    arrived: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Whether a line is being written.
    busy: bool,
    losses: Losses,
    untold: Untold,
    /// What the notice that is on its way tells.
    telling: Untold,
    told: Option<Instant>,
}

/// Missing lines of which the log does not tell yet.
#[derive(Debug, Default)]
struct Untold {
    lost: u64,
    /// By where they come from.
    left_out: BTreeMap<&'static str, u64>,
}

/// Between two lines that tell of missing ones.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a log that could not be written is tried.
const RETRY: Duration = Duration::from_secs(1);

impl Untold {
    fn is_empty(&self) -> bool {
        self.lost == 0 && self.left_out.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.lost = self.lost.saturating_add(other.lost);
        for (kind, number) in other.left_out {
            self.leave_out(kind, number);
        }
    }

    fn leave_out(&mut self, kind: &'static str, number: u64) {
        let count = self.left_out.entry(kind).or_default();
        *count = count.saturating_add(number);
    }
}

impl Queue {
    pub(super) fn bounded(bounds: Bounds) -> Self {
        Self {
            bounds,
            inner: Mutex::default(),
            arrived: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// A panic while it is locked leaves nothing half done.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, if there is room. A notice is always taken: there is one at a time.
    pub(super) fn push(&self, line: Line) {
        let mut inner = self.inner();
        let has_room = inner.lines.len() < self.bounds.lines
            && inner.bytes.saturating_add(line.text.len()) <= self.bounds.bytes;
        if has_room || line.is_notice {
            inner.bytes = inner.bytes.saturating_add(line.text.len());
            inner.lines.push_back(line);
            self.arrived.notify_one();
        } else {
            inner.lose_one();
        }
    }

    /// Counts a line that was not even made.
    pub(super) fn leave_out(&self, kind: &'static str) {
        let mut inner = self.inner();
        inner.losses.left_out = inner.losses.left_out.saturating_add(1);
        inner.untold.leave_out(kind, 1);
        self.arrived.notify_one();
    }

    pub(super) fn losses(&self) -> Losses {
        self.inner().losses
    }

    /// Whether there is something to write, now or later.
    pub(super) fn is_waiting(&self) -> bool {
        let inner = self.inner();
        !(inner.lines.is_empty() && inner.untold.is_empty())
    }

    pub(super) fn forget(&self) {
        *self.inner() = Inner::default();
    }

    /// Waits until there is a line to write, or something to tell and time to do so.
    pub(super) fn wait(&self) {
        let mut inner = self.inner();
        while inner.lines.is_empty() && !inner.is_time_to_tell() {
            inner = if inner.untold.is_empty() {
                self.arrived
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.arrived.wait_timeout(inner, RETRY);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Waits until everything is written, or until the deadline.
    pub(super) fn wait_until_empty(&self, deadline: Instant) {
        let mut inner = self.inner();
        while inner.busy || !inner.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.emptied.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hands lines on until there is none or the sink takes none; and, if it takes them, what is
    /// to be told of those that are missing.
    pub(super) fn pass_on(&self, sink: &mut dyn FnMut(&Line) -> Passed) {
        loop {
            self.tell();
            let mut inner = self.inner();
            let Some(line) = inner.lines.pop_front() else {
                return;
            };
            inner.busy = true;
            drop(inner);
            let passed = sink(&line);
            let mut inner = self.inner();
            inner.busy = false;
            if passed == Passed::Later {
                inner.lines.push_front(line);
                return;
            }
            inner.bytes = inner.bytes.saturating_sub(line.text.len());
            if line.is_notice {
                let telling = std::mem::take(&mut inner.telling);
                if passed == Passed::Lost {
                    inner.untold.add(telling);
                }
            } else if passed == Passed::Lost {
                inner.lose_one();
            }
            if inner.lines.is_empty() {
                self.emptied.notify_all();
            }
        }
    }

    /// Says in the log what is missing from it: as a line like all others, in its form.
    fn tell(&self) {
        let mut inner = self.inner();
        if !inner.is_time_to_tell() {
            return;
        }
        inner.told = Some(Instant::now());
        let untold = std::mem::take(&mut inner.untold);
        let lost = untold.lost;
        let left_out = untold
            .left_out
            .values()
            .fold(0, |sum: u64, n| sum.saturating_add(*n));
        let kinds: Vec<String> = (untold.left_out.iter())
            .map(|(kind, number)| format!("{kind} ({number})"))
            .collect();
        inner.telling = untold;
        drop(inner);
        if lost > 0 {
            tracing::error!(target: NOTICE, lost, left_out, of = kinds.join(", "),
                "lines of this log are missing: it could not be written, or not as fast");
        } else {
            tracing::warn!(target: NOTICE, left_out, of = kinds.join(", "),
                "lines of this log are left out: too many of a kind");
        }
        let mut inner = self.inner();
        // A filter may want no such line; then it is not told, and not tried at once again.
        if !inner.lines.iter().any(|line| line.is_notice) {
            let telling = std::mem::take(&mut inner.telling);
            inner.untold.add(telling);
        }
    }
}

impl Inner {
    fn is_time_to_tell(&self) -> bool {
        !self.untold.is_empty()
            && self.telling.is_empty()
            && self.told.is_none_or(|told| told.elapsed() >= PAUSE)
    }

    fn lose_one(&mut self) {
        self.losses.lost = self.losses.lost.saturating_add(1);
        self.untold.lost = self.untold.lost.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn line(text: &str) -> Line {
        Line {
            level: Level::INFO,
            text: text.to_owned(),
            is_notice: false,
        }
    }

    fn queue(lines: usize, bytes: usize) -> Queue {
        Queue::bounded(Bounds { lines, bytes })
    }

    fn taken(queue: &Queue) -> Vec<String> {
        let mut taken = Vec::new();
        queue.pass_on(&mut |line| {
            taken.push(line.text.clone());
            Passed::Done
        });
        taken
    }

    #[test]
    fn what_there_is_no_room_for_is_lost_and_counted() {
        let few = queue(2, 1000);
        for text in ["a", "b", "c"] {
            few.push(line(text));
        }
        assert_eq!(few.losses().lost, 1);
        assert_eq!(taken(&few), ["a", "b"]);
        few.push(line("d"));
        assert_eq!(taken(&few), ["d"]);
        let short = queue(100, 5);
        for text in ["abc", "defg", "hi"] {
            short.push(line(text));
        }
        assert_eq!(taken(&short), ["abc", "hi"]);
        assert_eq!(short.losses().lost, 1);
    }

    #[test]
    fn a_line_that_cannot_be_taken_now_stays_the_first() {
        let queue = queue(9, 99);
        queue.push(line("a"));
        queue.push(line("b"));
        queue.pass_on(&mut |_| Passed::Later);
        assert_eq!(taken(&queue), ["a", "b"]);
        assert_eq!(queue.losses(), Losses::default());
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_counted_and_nobody_waits_for_it() {
        let queue = queue(9, 99);
        queue.push(line("a"));
        queue.pass_on(&mut |_| Passed::Lost);
        queue.wait_until_empty(Instant::now() + Duration::from_secs(600));
        assert_eq!(queue.losses().lost, 1);
    }
}
