//! How many connections there are at a time.
//!
//! A peer gets a share of them. A connection that has not shown yet what it must show is given up for a
//! new one when there is no room: whoever keeps silent loses the place to whoever comes, so that no
//! number of silent connections keeps others out. Until it is gone, it is there beside the new one: a few
//! at a time may be.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::held::Held;
use crate::peer::Peer;

/// Connections that there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All of them.
    pub connections: usize,
    /// Those of one peer.
    pub of_a_peer: usize,
}

/// Connections that were given up and are not gone yet. As long as there are so many, none is given up.
pub(crate) const MAX_LEAVING: usize = 64;

/// The connections under way.
#[derive(Debug)]
pub struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Without those that were given up.
    count: usize,
    /// Those that were given up and whose places are held.
    leaving: usize,
    peers: HashMap<Peer, OfPeer>,
}

/// The connections of one peer; never none.
#[derive(Debug, Default)]
struct OfPeer {
    /// Those that are kept.
    kept: usize,
    /// Those that give way to new ones, in the order in which they came.
    silent: BTreeMap<u64, CancellationToken>,
}

/// A place, given back when it is dropped and all that [holds](Place::hold) it.
#[derive(Debug)]
pub struct Place {
    holder: Holder,
    gave_way: CancellationToken,
}

/// A part in a place.
pub(crate) type Holder = Arc<Taking>;

/// One place that was taken; dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Taking {
    places: Arc<Places>,
    peer: Peer,
    number: u64,
    /// Changed and read under the lock of the places.
    kept: AtomicBool,
}

impl Places {
    /// Places within these limits.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            taken: Mutex::default(),
        })
    }

    /// A place for a new connection, unless all are taken by connections that are kept, or as many as may
    /// be are giving way already.
    pub fn take(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let mut taken = self.taken();
        if taken.of(peer) >= self.limits.of_a_peer && !taken.give_up_a_silent_one(Some(peer)) {
            return None;
        }
        if taken.count >= self.limits.connections && !taken.give_up_a_silent_one(None) {
            return None;
        }
        let number = taken.next;
        taken.next = taken.next.wrapping_add(1);
        taken.count += 1;
        let gave_way = CancellationToken::new();
        let of_peer = taken.peers.entry(peer).or_default();
        of_peer.silent.insert(number, gave_way.clone());
        let taking = Taking {
            places: Arc::clone(self),
            peer,
            number,
            kept: AtomicBool::new(false),
        };
        Some(Place {
            holder: Arc::new(taking),
            gave_way,
        })
    }

    /// Ends a connection that is not kept yet, if there is one: something that each needs has run out.
    pub fn give_up_one(&self) -> bool {
        self.taken().give_up_a_silent_one(None)
    }

    /// Connections just now, without those that were given up.
    pub fn count(&self) -> usize {
        self.taken().count
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&self, peer: Peer) -> usize {
        self.peers.get(&peer).map_or(0, OfPeer::count)
    }

    /// Ends the oldest silent connection, of one peer or of the peer that has most connections.
    fn give_up_a_silent_one(&mut self, of: Option<Peer>) -> bool {
        if self.leaving >= MAX_LEAVING {
            return false;
        }
        let of = of.or_else(|| {
            let peers = self.peers.iter();
            peers
                .filter(|(_, found)| !found.silent.is_empty())
                .max_by_key(|(_, found)| found.count())
                .map(|(peer, _)| *peer)
        });
        let Some((peer, (_, gives_way))) = of.and_then(|peer| {
            let oldest = self.peers.get_mut(&peer)?.silent.pop_first()?;
            Some((peer, oldest))
        }) else {
            return false;
        };
        gives_way.cancel();
        self.leaving += 1;
        self.is_one_less(peer);
        true
    }

    fn is_one_less(&mut self, peer: Peer) {
        self.count -= 1;
        if self.of(peer) == 0 {
            self.peers.remove(&peer);
        }
    }
}

impl OfPeer {
    fn count(&self) -> usize {
        self.kept + self.silent.len()
    }
}

impl Place {
    /// The connection has shown what it must show: from now on it gives way to nobody. `false` if it has
    /// been given up meanwhile.
    pub fn keep(&mut self) -> bool {
        let taking = &*self.holder;
        let mut taken = taking.places.taken();
        if let Some(of_peer) = taken.peers.get_mut(&taking.peer)
            && of_peer.silent.remove(&taking.number).is_some()
        {
            of_peer.kept += 1;
            taking.kept.store(true, Ordering::Relaxed);
        }
        taking.kept.load(Ordering::Relaxed)
    }

    /// Has a transport hold the place, too: for one that another task may own longer than this place's
    /// owner lives.
    pub fn hold<IO>(&self, io: IO) -> Held<IO> {
        Held {
            io,
            _holder: Arc::clone(&self.holder),
        }
    }

    /// Waits until the connection is given up for another.
    pub async fn gave_way(&self) {
        self.gave_way.cancelled().await;
    }

    /// Tells when the connection is given up for another.
    pub(crate) fn token(&self) -> CancellationToken {
        self.gave_way.clone()
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        let of_peer = taken.peers.get_mut(&self.peer);
        let was_counted = of_peer.is_some_and(|of_peer| {
            if self.kept.load(Ordering::Relaxed) {
                of_peer.kept -= 1;
                return true;
            }
            of_peer.silent.remove(&self.number).is_some()
        });
        if was_counted {
            taken.is_one_less(self.peer);
        } else {
            // It was given up.
            taken.leaving -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const OF_A_PEER: usize = 8;

    fn places() -> Arc<Places> {
        Places::new(Limits {
            connections: 64,
            of_a_peer: OF_A_PEER,
        })
    }

    fn peer(last: u8) -> Peer {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)).into()
    }

    #[test]
    fn silent_connections_give_way_to_new_ones_the_oldest_first() {
        let places = places();
        let held: Vec<_> = (0..OF_A_PEER + 1)
            .map(|_| places.take(peer(1)).unwrap())
            .collect();
        let gave_way: Vec<_> = held
            .iter()
            .map(|place| place.gave_way.is_cancelled())
            .collect();
        assert_eq!(gave_way.iter().position(|gave_way| *gave_way), Some(0));
        assert_eq!(gave_way.iter().filter(|gave_way| **gave_way).count(), 1);
        assert_eq!(places.count(), OF_A_PEER);
        for mut place in held {
            assert_eq!(place.keep(), !place.gave_way.is_cancelled());
        }
        assert_eq!(places.count(), 0);
        assert!(places.taken().peers.is_empty());
    }

    #[test]
    fn what_was_given_up_and_is_not_gone_is_bounded() {
        let places = Places::new(Limits {
            connections: 1,
            of_a_peer: 1,
        });
        let mut held: Vec<_> = (0..=MAX_LEAVING)
            .map(|_| places.take(peer(1)).unwrap())
            .collect();
        assert!(places.take(peer(1)).is_none());
        assert!(places.take(peer(2)).is_none());
        assert!(!places.give_up_one());
        held.remove(0);
        held.push(places.take(peer(2)).unwrap());
        assert!(places.take(peer(2)).is_none());
        drop(held);
        assert_eq!((places.count(), places.taken().leaving), (0, 0));
    }

    #[test]
    fn a_place_is_given_back_when_its_transport_is_closed_whoever_owns_that() {
        let places = Places::new(Limits {
            connections: 2,
            of_a_peer: 2,
        });
        let mut kept = places.take(peer(1)).unwrap();
        let of_kept = kept.hold(());
        assert!(kept.keep());
        let silent = places.take(peer(1)).unwrap();
        let of_silent = silent.hold(());
        drop(kept);
        assert_eq!(places.count(), 2);
        drop(of_kept);
        assert_eq!(places.count(), 1);
        assert!(places.give_up_one());
        drop(silent);
        assert_eq!((places.count(), places.taken().leaving), (0, 1));
        drop(of_silent);
        assert_eq!((places.count(), places.taken().leaving), (0, 0));
    }

    #[test]
    fn kept_connections_keep_their_places_and_other_peers_have_theirs() {
        let places = places();
        let mut held = Vec::new();
        let mut connect = |from, keep: bool| {
            let mut place = places.take(peer(from));
            if let (Some(place), true) = (&mut place, keep) {
                assert!(place.keep());
            }
            let taken = place.is_some();
            held.extend(place);
            taken
        };
        for _ in 0..OF_A_PEER {
            assert!(connect(1, true));
        }
        assert!(!connect(1, true), "as many as one peer gets");
        for from in 2..=8 {
            for _ in 0..OF_A_PEER {
                assert!(connect(from, from != 8));
            }
        }
        assert!(connect(9, true), "in the place of a silent one");
        assert_eq!(places.count(), 64);
        drop(held);
        assert_eq!(places.count(), 0);
    }
}
