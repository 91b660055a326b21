//! How many connections each may have: addresses as long as they have shown nothing, tenants afterwards.
//!
//! When all places for handshakes are taken, the oldest handshake of the address with most gives way to
//! whoever comes: no number of silent connections keeps others out.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cert_chain::Tenant;
use rate_limit::Quota;
use tokio_util::sync::CancellationToken;

/// Handshakes at a time, from everywhere.
const HANDSHAKES: usize = 256;
/// Handshakes at a time from one address.
const HANDSHAKES_OF_ONE: usize = 16;
/// Handshakes in a minute, from everywhere: each takes a millisecond of a processor that guests need as
/// well.
const HANDSHAKES_PER_MINUTE: u32 = 6000;
/// The same from one address.
const HANDSHAKES_OF_ONE_PER_MINUTE: u32 = 1200;
/// Connections of all tenants.
const CONNECTIONS: usize = 4096;
/// Addresses whose handshakes are counted.
const MOST_ADDRESSES: usize = 4096;

/// All connections.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
    /// Connections that one tenant may have at a time.
    of_tenant: usize,
}

#[derive(Debug)]
struct Taken {
    /// Those of each address in the order in which they came, each with what ends it.
    handshakes: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
    /// How many handshakes there have been.
    came: u64,
    connections: HashMap<Tenant, usize>,
    /// How often each address has begun a handshake.
    begun: HashMap<IpAddr, Quota>,
    all_begun: Quota,
}

/// A connection that has shown nothing yet. Its place is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Entering {
    places: Arc<Places>,
    from: IpAddr,
    number: u64,
    gave_way: CancellationToken,
}

/// A tenant's connection. Its place is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    tenant: Tenant,
}

impl Places {
    pub(crate) fn new(of_tenant: u32, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::new(Taken {
                handshakes: HashMap::new(),
                came: 0,
                connections: HashMap::new(),
                begun: HashMap::new(),
                all_begun: Quota::per_minute(HANDSHAKES_PER_MINUTE, now),
            }),
            of_tenant: usize::try_from(of_tenant).unwrap_or(usize::MAX),
        })
    }

    /// A place for a handshake, unless its address has as many as it may have.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr, now: Instant) -> Option<Entering> {
        let from = network_of(from);
        let mut taken = self.taken();
        let own = taken.handshakes.get(&from).map_or(0, BTreeMap::len);
        if own >= HANDSHAKES_OF_ONE || !taken.may_begin(from, now) {
            return None;
        }
        let all: usize = taken.handshakes.values().map(BTreeMap::len).sum();
        if all >= HANDSHAKES {
            taken.give_one_up();
        }
        let (number, gave_way) = (taken.came, CancellationToken::new());
        taken.came = taken.came.wrapping_add(1);
        let of_address = taken.handshakes.entry(from).or_default();
        of_address.insert(number, gave_way.clone());
        Some(Entering {
            places: Arc::clone(self),
            from,
            number,
            gave_way,
        })
    }

    /// Connections of tenants.
    pub(crate) fn connections(&self) -> usize {
        self.taken().connections.values().sum()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn may_begin(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.begun.len() >= MOST_ADDRESSES && !self.begun.contains_key(&from) {
            self.begun.clear();
        }
        let own = || Quota::per_minute(HANDSHAKES_OF_ONE_PER_MINUTE, now);
        // One that has used up its own takes nothing of what all have.
        self.begun.entry(from).or_insert_with(own).admit(now) && self.all_begun.admit(now)
    }

    /// Ends the oldest handshake of the address with most.
    fn give_one_up(&mut self) {
        let addresses = self.handshakes.iter();
        let most = addresses.max_by_key(|(_, found)| {
            let oldest = found.first_key_value().map(|(number, _)| Reverse(*number));
            (found.len(), oldest)
        });
        let Some((from, number)) = most.and_then(|(from, found)| {
            let (number, gives_way) = found.first_key_value()?;
            gives_way.cancel();
            Some((*from, *number))
        }) else {
            return;
        };
        self.end(from, number);
    }

    fn end(&mut self, from: IpAddr, number: u64) {
        if let Entry::Occupied(mut found) = self.handshakes.entry(from) {
            found.get_mut().remove(&number);
            if found.get().is_empty() {
                found.remove();
            }
        }
    }
}

impl Entering {
    /// Waits until its place is needed for another one.
    pub(crate) async fn gave_way(&self) {
        self.gave_way.cancelled().await;
    }

    /// The tenant is known: a place of its own for the connection, if it has one left.
    pub(crate) fn admit(self, tenant: &Tenant) -> Option<Place> {
        let mut taken = self.places.taken();
        let all: usize = taken.connections.values().sum();
        let own = taken.connections.get(tenant).copied().unwrap_or(0);
        if all >= CONNECTIONS || own >= self.places.of_tenant {
            return None;
        }
        *taken.connections.entry(tenant.clone()).or_default() += 1;
        drop(taken);
        Some(Place {
            places: Arc::clone(&self.places),
            tenant: tenant.clone(),
        })
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.places.taken().end(self.from, self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Entry::Occupied(mut count) = taken.connections.entry(self.tenant.clone()) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What one customer of a network has: an address of version 4, or 64 bits of one of version 6.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::{Context, Result};

    use super::*;

    #[test]
    fn one_address_takes_no_place_of_others_and_gets_its_own_back() -> Result<()> {
        let now = Instant::now();
        let places = Places::new(2, now);
        let greedy: IpAddr = "2001:db8::1".parse()?;
        let held: Vec<_> = (0..100_u16)
            .filter_map(|host| {
                let mut octets = "2001:db8::".parse::<Ipv6Addr>().ok()?.segments();
                octets[7] = host;
                places.enter(IpAddr::V6(octets.into()), now)
            })
            .collect();
        assert_eq!(held.len(), HANDSHAKES_OF_ONE);
        assert!(places.enter("192.0.2.1".parse()?, now).is_some());
        drop(held);
        assert!(places.enter(greedy, now).is_some());
        assert!(places.taken().handshakes.is_empty());
        Ok(())
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_handshake_of_the_address_with_most_gives_way()
    -> Result<()> {
        let now = Instant::now();
        let places = Places::new(2, now);
        let enter = |network: u8, host: u8| {
            let from = Ipv4Addr::new(192, 0, network, host);
            places.enter(from.into(), now).context("no place")
        };
        let few = enter(1, 1)?;
        let mut held = Vec::new();
        for host in 0..16 {
            for _ in 0..16 - u8::from(host == 0) {
                held.push(enter(2, host)?);
            }
        }
        assert_eq!(held.len() + 1, HANDSHAKES);
        let gone = |held: &[Entering]| {
            held.iter()
                .filter(|one| one.gave_way.is_cancelled())
                .count()
        };
        assert_eq!(gone(&held), 0);
        let _late = enter(3, 1)?;
        // Of the first address that has as many as it may have.
        assert!(held.get(15).is_some_and(|one| one.gave_way.is_cancelled()));
        let (_later, _latest) = (enter(4, 1)?, enter(5, 1)?);
        assert_eq!(gone(&held), 3);
        assert!(!few.gave_way.is_cancelled());
        held.retain(|one| !one.gave_way.is_cancelled());
        let all: usize = places.taken().handshakes.values().map(BTreeMap::len).sum();
        assert_eq!(all, HANDSHAKES);
        drop(held);
        assert_eq!(places.taken().handshakes.len(), 4);
        Ok(())
    }

    #[test]
    fn one_tenant_takes_no_place_of_others() -> Result<()> {
        let now = Instant::now();
        let places = Places::new(2, now);
        let (acme, other) = ("acme".parse()?, "other".parse()?);
        let enter = || places.enter("192.0.2.1".parse().ok()?, now);
        let admit = |tenant| enter().and_then(|entering| entering.admit(tenant));
        let (first, _second) = (admit(&acme).context("one")?, admit(&acme).context("two")?);
        assert!(admit(&acme).is_none());
        assert!(admit(&other).is_some());
        drop(first);
        assert!(admit(&acme).is_some());
        assert_eq!(places.connections(), 1);
        Ok(())
    }

    #[test]
    fn whoever_comes_again_and_again_uses_up_its_own_handshakes_first() -> Result<()> {
        let now = Instant::now();
        let places = Places::new(2, now);
        let enter = |from: &str| Ok::<_, anyhow::Error>(places.enter(from.parse()?, now).is_some());
        let mut entered = 0;
        for _ in 0..10_000 {
            entered += u32::from(enter("192.0.2.1")?);
        }
        assert_eq!(entered, HANDSHAKES_OF_ONE_PER_MINUTE / 4);
        assert!(enter("192.0.2.2")?);
        Ok(())
    }
}
