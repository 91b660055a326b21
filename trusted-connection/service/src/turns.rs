//! Whose turn it is at the TPM, which answers one challenge after the other.
//!
//! The peer comes next that was served longest ago, or never: a peer with many challenges waits
//! for itself, and keeps nobody else waiting for more than one of them.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::peer::Peer;

/// Peers of which it is known when they were served.
const MAX_KNOWN: usize = 1024;

/// Challenges that wait for the TPM.
#[derive(Debug, Default)]
pub(super) struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    busy: bool,
    arrivals: u64,
    waiting: Vec<(u64, Peer)>,
    served: u64,
    /// How many were served before a peer was last.
    last: HashMap<Peer, u64>,
}

/// The TPM's attention, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'t>(&'t Turns);

impl Turns {
    /// Waits for a turn; none comes after the deadline.
    pub(super) fn wait(&self, peer: Peer, deadline: Instant) -> Option<Turn<'_>> {
        let mut queue = self.queue();
        let number = queue.arrivals;
        queue.arrivals = queue.arrivals.wrapping_add(1);
        queue.waiting.push((number, peer));
        loop {
            if !queue.busy && queue.next() == Some(number) {
                queue.begin(number, peer);
                return Some(Turn(self));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                queue.waiting.retain(|(waiting, _)| *waiting != number);
                drop(queue);
                self.changed.notify_all();
                return None;
            }
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn next(&self) -> Option<u64> {
        let last_served = |peer| self.last.get(peer).map_or(0, |at| at.saturating_add(1));
        let next = self.waiting.iter();
        let next = next.min_by_key(|(number, peer)| (last_served(peer), *number));
        next.map(|(number, _)| *number)
    }

    fn begin(&mut self, number: u64, peer: Peer) {
        self.busy = true;
        self.waiting.retain(|(waiting, _)| *waiting != number);
        if self.last.len() >= MAX_KNOWN && !self.last.contains_key(&peer) {
            // Those that were served long ago count as if they never were.
            let half = self.served.saturating_sub((MAX_KNOWN / 2) as u64);
            self.last.retain(|_, at| *at >= half);
        }
        self.last.insert(peer, self.served);
        self.served = self.served.saturating_add(1);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.queue().busy = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn peer(last: u8) -> Peer {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)).into()
    }

    #[test]
    fn a_peer_that_was_not_served_yet_comes_before_one_that_asks_all_the_time() {
        let turns = Arc::new(Turns::default());
        let deadline = Instant::now() + LONG;
        let first = turns.wait(peer(1), deadline).unwrap();
        let (served, order) = mpsc::channel();
        let threads: Vec<_> = [1, 1, 1, 2, 1, 3]
            .into_iter()
            .enumerate()
            .map(|(before, from)| {
                let (own, served) = (Arc::clone(&turns), served.clone());
                let thread = thread::spawn(move || {
                    let turn = own.wait(peer(from), deadline).unwrap();
                    served.send(from).unwrap();
                    drop(turn);
                });
                while turns.queue().waiting.len() <= before {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        drop(served);
        assert_eq!(order.iter().collect::<Vec<_>>(), [2, 3, 1, 1, 1, 1]);
    }

    #[test]
    fn nobody_waits_for_longer_than_its_deadline_or_for_one_that_gave_up() {
        let turns = Turns::default();
        let soon = || Instant::now() + Duration::from_millis(20);
        let held = turns.wait(peer(1), soon()).unwrap();
        assert!(turns.wait(peer(2), soon()).is_none());
        drop(held);
        assert!(turns.wait(peer(3), Instant::now() + LONG).is_some());
    }
}
