//! Connections that a service has at a time.
//!
//! A peer gets a few of them. A connection on which no challenge came yet is given up for a new
//! one when there is no room: whoever keeps silent loses the place to whoever comes, so that no
//! number of silent connections keeps a device out.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::peer::Peer;

/// All connections; each has a thread.
const MAX_CONNECTIONS: usize = 64;
/// Those of one peer.
const MAX_OF_A_PEER: usize = 8;

/// The connections under way, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    /// To be given up while it is silent; none after its challenge came.
    silent: Option<TcpStream>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Places {
    /// A place for a new connection, unless all are taken by challenges that wait for an answer.
    pub(super) fn take(self: &Arc<Self>, peer: Peer, stream: &TcpStream) -> Option<Place> {
        let silent = stream.try_clone().ok()?;
        let mut taken = self.taken();
        if taken.of(peer) >= MAX_OF_A_PEER && !taken.give_up_a_silent_one(Some(peer)) {
            return None;
        }
        if taken.connections.len() >= MAX_CONNECTIONS && !taken.give_up_a_silent_one(None) {
            return None;
        }
        let number = taken.next;
        taken.next = taken.next.wrapping_add(1);
        let silent = Some(silent);
        taken
            .connections
            .insert(number, Connection { peer, silent });
        Some(Place {
            places: Arc::clone(self),
            number,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&self, peer: Peer) -> usize {
        let connections = self.connections.values();
        connections.filter(|found| found.peer == peer).count()
    }

    /// Ends the oldest silent connection, of one peer or of the peer that has most of them.
    fn give_up_a_silent_one(&mut self, of: Option<Peer>) -> bool {
        let silent = |connection: &Connection| connection.silent.is_some();
        let of = of.or_else(|| {
            let silent = self.connections.values().filter(|found| silent(found));
            silent.map(|found| found.peer).max_by_key(|p| self.of(*p))
        });
        let oldest = self
            .connections
            .iter()
            .find(|(_, found)| silent(found) && Some(found.peer) == of)
            .map(|(number, _)| *number);
        let Some(connection) = oldest.and_then(|number| self.connections.remove(&number)) else {
            return false;
        };
        if let Some(stream) = connection.silent {
            // Its thread finds the end of the stream.
            let _ = stream.shutdown(Shutdown::Both);
        }
        true
    }
}

impl Place {
    /// The challenge came: from now on the connection is kept until it is answered.
    pub(super) fn is_no_longer_silent(&self) {
        if let Some(connection) = self.places.taken().connections.get_mut(&self.number) {
            connection.silent = None;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Read;
    use std::net::{IpAddr, Ipv4Addr, TcpListener};

    use super::*;

    fn peer(last: u8) -> Peer {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)).into()
    }

    /// Ends of one connection: the device's, the service's.
    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let device = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (device, listener.accept().unwrap().0)
    }

    #[test]
    fn silent_connections_give_way_to_new_ones_the_oldest_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let places = Arc::new(Places::default());
        let held: Vec<_> = (0..MAX_OF_A_PEER + 1)
            .map(|_| {
                let (device, ours) = connection(&listener);
                (places.take(peer(1), &ours).unwrap(), device, ours)
            })
            .collect();
        let (_, first, _) = held.first().unwrap();
        assert_eq!((&*first).read(&mut [0]).unwrap(), 0, "it was given up");
        assert_eq!(places.taken().connections.len(), MAX_OF_A_PEER);
        drop(held);
        assert!(places.taken().connections.is_empty());
    }

    #[test]
    fn challenges_keep_their_places_and_other_peers_have_theirs() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let places = Arc::new(Places::default());
        let mut held = Vec::new();
        let mut connect = |from, asks: bool| {
            let (device, ours) = connection(&listener);
            let place = places.take(peer(from), &ours);
            if let (Some(place), true) = (&place, asks) {
                place.is_no_longer_silent();
            }
            let taken = place.is_some();
            held.push((place, device));
            taken
        };
        for _ in 0..MAX_OF_A_PEER {
            assert!(connect(1, true));
        }
        assert!(!connect(1, true), "as many as one peer gets");
        for from in 2..=8 {
            for _ in 0..MAX_OF_A_PEER {
                assert!(connect(from, from != 8));
            }
        }
        assert!(connect(9, true), "in the place of a silent one");
    }
}
