//! The newest events of one sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use api_types::wire::EventLine;
use tokio::sync::watch;

use super::happening::Happening;

/// The newest events of one sequence, and who waits for the next.
#[derive(Debug)]
pub(super) struct Kept {
    newest: VecDeque<Arc<Happening>>,
    most: usize,
    /// Number of the next event.
    next: u64,
    /// Tells followers of the next number.
    changed: watch::Sender<u64>,
}

impl Kept {
    /// An empty sequence whose first event has this number, and which keeps so many.
    pub(super) fn new(first: u64, most: usize) -> Self {
        Self {
            newest: VecDeque::new(),
            most,
            next: first,
            changed: watch::Sender::new(first),
        }
    }

    pub(super) fn push(&mut self, happening: Arc<Happening>) {
        if self.newest.len() >= self.most {
            self.newest.pop_front();
        }
        self.newest.push_back(happening);
        self.next = self.next.saturating_add(1);
        self.changed.send_replace(self.next);
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn oldest(&self) -> u64 {
        let kept = u64::try_from(self.newest.len()).unwrap_or(u64::MAX);
        self.next.saturating_sub(kept)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn has_followers(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// Whether the last event of the other one came after that of this one.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let last = |kept: &Self| kept.newest.back().map(|happening| happening.order);
        last(self) < last(other)
    }

    /// What somebody is told who has read up to `position`: at most so many lines. Moves the
    /// position on.
    pub(super) fn read(&self, position: &mut u64, most: usize) -> Vec<EventLine> {
        let mut lines = Vec::new();
        let oldest = self.oldest();
        if *position < oldest {
            lines.push(EventLine::Missed {
                from: *position,
                to: oldest.saturating_sub(1),
            });
            *position = oldest;
        }
        let skipped = usize::try_from(position.saturating_sub(oldest)).unwrap_or(usize::MAX);
        for happening in self.newest.iter().skip(skipped).take(most) {
            lines.push(EventLine::Event(happening.numbered(*position)));
            *position = position.saturating_add(1);
        }
        lines
    }
}
