//! How many connections there are at a time. Every user of the machine reaches a port on the loopback, so
//! those that have not shown the token have places of their own, of which the oldest gives way to whoever
//! comes: no number of them takes anything from those that have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections that have not shown the token. A browser has six for what the page is made of.
const UNKNOWN: usize = 64;
/// Connections that have.
const ADMITTED: usize = 128;

/// All connections.
#[derive(Debug)]
pub(crate) struct Places {
    unknown: Mutex<Unknown>,
    admitted: Arc<Semaphore>,
}

/// Those without the token, in the order in which they came, each with what ends it.
#[derive(Debug, Default)]
struct Unknown {
    came: u64,
    connections: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place, which is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    ended: Arc<Notify>,
    admitted: OnceLock<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            unknown: Mutex::default(),
            admitted: Arc::new(Semaphore::new(ADMITTED)),
        })
    }

    /// A place for whoever comes.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let mut unknown = self.unknown();
        if unknown.connections.len() >= UNKNOWN
            && let Some((_, oldest)) = unknown.connections.pop_first()
        {
            // Kept until it is waited for.
            oldest.notify_one();
        }
        let (number, ended) = (unknown.came, Arc::new(Notify::new()));
        unknown.came = unknown.came.wrapping_add(1);
        unknown.connections.insert(number, Arc::clone(&ended));
        Place {
            places: Arc::clone(self),
            number,
            ended,
            admitted: OnceLock::new(),
        }
    }

    fn unknown(&self) -> MutexGuard<'_, Unknown> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The token was shown: from now on this gives way to nobody. False if as many have as may, or if it gave
    /// way just before.
    pub(crate) fn admit(&self) -> bool {
        if self.admitted.get().is_some() {
            return true;
        }
        let Ok(place) = Arc::clone(&self.places.admitted).try_acquire_owned() else {
            return false;
        };
        if self
            .places
            .unknown()
            .connections
            .remove(&self.number)
            .is_none()
        {
            return false;
        }
        // A connection has one request at a time: nobody else has set it.
        let _ = self.admitted.set(place);
        true
    }

    /// Waits until the place is needed for another one.
    pub(crate) async fn gave_way(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.unknown().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a connection was ended; asks once.
    async fn is_ended(place: &Place) -> bool {
        tokio::select! {
            biased;
            () = place.gave_way() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn who_has_no_token_takes_no_place_of_those_who_have() {
        let places = Places::new();
        let (browser, first) = (places.enter(), places.enter());
        assert!(browser.admit());
        let strangers: Vec<Place> = (0..2 * UNKNOWN).map(|_| places.enter()).collect();
        assert!(is_ended(&first).await, "the oldest gives way");
        assert!(!is_ended(&browser).await);
        let mut left = 0;
        for stranger in &strangers {
            left += usize::from(!is_ended(stranger).await);
        }
        assert_eq!(left, UNKNOWN);
        // Who comes now is served, and gets a place that stays.
        let late = places.enter();
        assert!(late.admit() && late.admit());
        drop(strangers);
        assert!(places.unknown().connections.is_empty());
    }

    #[tokio::test]
    async fn who_gave_way_before_the_token_was_read_is_not_admitted() {
        let places = Places::new();
        let first = places.enter();
        let _others: Vec<Place> = (0..UNKNOWN).map(|_| places.enter()).collect();
        assert!(!first.admit());
        assert!(is_ended(&first).await);
        assert_eq!(places.admitted.available_permits(), ADMITTED);
    }

    #[test]
    fn connections_with_the_token_have_a_limit_too() {
        let places = Places::new();
        let mut admitted = Vec::new();
        for _ in 0..ADMITTED {
            let place = places.enter();
            assert!(place.admit());
            admitted.push(place);
        }
        let late = places.enter();
        assert!(!late.admit());
        admitted.pop();
        assert!(late.admit());
    }
}
