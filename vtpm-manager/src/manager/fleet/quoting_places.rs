//! How many vRoTs quote for tenants at a time.
//!
//! A quote uses a processor for a third of a millisecond, and a guest whose command comes meanwhile waits
//! for those before it on that processor. So there are few places for all requests together, in proportion to the
//! processors, and the places go round among requests: one for a thousand VMs keeps one for a single VM waiting for
//! a few quotes.
//!
//! Quotes run with the priority of guests' commands. With a lower one, programs of others on a busy host could
//! keep a quote from ending, and with it the next command of the very guest that is quoted.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// With one, a processor has nothing to do while a quote is on its way between backend and manager, which checks
/// it; with more than two, guests wait longer and the set is not there sooner.
const FOR_EACH_PROCESSOR: usize = 2;
/// A quote that takes longer waits for a command of its guest, which may go on for seconds, and uses no
/// processor: others have its place.
const HELD: Duration = Duration::from_millis(20);

/// The places of a host.
#[derive(Debug)]
pub(super) struct QuotingPlaces {
    number: usize,
    /// For how long a quote keeps its place at most.
    held: Duration,
    all: Arc<Semaphore>,
}

/// What one request has of them.
#[derive(Clone, Debug)]
pub(super) struct Share {
    held: Duration,
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl QuotingPlaces {
    /// For the processors that this process may use.
    pub(super) fn of_this_host() -> Self {
        let processors = available_parallelism().map_or(1, NonZeroUsize::get);
        Self::new(processors.saturating_mul(FOR_EACH_PROCESSOR), HELD)
    }

    fn new(number: usize, held: Duration) -> Self {
        Self {
            number,
            held,
            all: Arc::new(Semaphore::new(number)),
        }
    }

    /// For a request: all places if it is the only one. Places are given in the order in which they are asked
    /// for, and a request asks for as many at a time as there are.
    pub(super) fn share(&self) -> Share {
        Share {
            held: self.held,
            own: Arc::new(Semaphore::new(self.number)),
            all: Arc::clone(&self.all),
        }
    }
}

impl Share {
    /// Does this when there is a place, which is another's after [`HELD`].
    pub(super) async fn quote<T>(&self, quote: impl Future<Output = T>) -> T {
        // Neither is ever closed.
        let places = (self.own.acquire().await, self.all.acquire().await);
        let mut quote = pin!(quote);
        match timeout(self.held, quote.as_mut()).await {
            Ok(quoted) => quoted,
            Err(_) => {
                drop(places);
                quote.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::Result;
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    /// Longer than any test.
    const FOREVER: Duration = Duration::from_secs(3600);

    #[derive(Debug, Default)]
    struct Seen {
        now: AtomicUsize,
        most: AtomicUsize,
        done: AtomicUsize,
    }

    impl Seen {
        async fn quote(&self) {
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            yield_now().await;
            self.now.fetch_sub(1, Ordering::Relaxed);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn begin(quotes: &mut JoinSet<()>, number: usize, share: &Share, seen: &Arc<Seen>) {
        for _ in 0..number {
            let (share, seen) = (share.clone(), Arc::clone(seen));
            quotes.spawn(async move { share.quote(seen.quote()).await });
        }
    }

    #[tokio::test]
    async fn as_many_quote_at_a_time_as_there_are_places_whoever_asks() {
        let (places, seen) = (QuotingPlaces::new(3, FOREVER), Arc::default());
        let mut quotes = JoinSet::new();
        begin(&mut quotes, 50, &places.share(), &seen);
        begin(&mut quotes, 50, &places.share(), &seen);
        quotes.join_all().await;
        assert_eq!(seen.done.load(Ordering::Relaxed), 100);
        assert_eq!(seen.most.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_request_for_one_vm_does_not_wait_for_one_for_a_thousand() {
        let (places, seen) = (QuotingPlaces::new(4, FOREVER), Arc::default());
        let mut quotes = JoinSet::new();
        begin(&mut quotes, 1000, &places.share(), &seen);
        while seen.done.load(Ordering::Relaxed) < 100 {
            yield_now().await;
        }
        let asked = seen.done.load(Ordering::Relaxed);
        places.share().quote(yield_now()).await;
        // Those that had a place, those that waited for one, and those that are done beside it.
        let waited = seen.done.load(Ordering::Relaxed) - asked;
        assert!(waited <= 12, "{waited} others were done meanwhile");
    }

    #[tokio::test]
    async fn a_quote_that_waits_for_its_guest_keeps_no_other_from_its_own() -> Result<()> {
        let places = QuotingPlaces::new(2, Duration::from_millis(1));
        let share = places.share();
        let mut quotes = JoinSet::new();
        for _ in 0..10 {
            let share = share.clone();
            quotes.spawn(async move { share.quote(pending::<()>()).await });
        }
        let others = async {
            share.quote(yield_now()).await;
            places.share().quote(yield_now()).await;
        };
        Ok(timeout(Duration::from_secs(60), others).await?)
    }
}
