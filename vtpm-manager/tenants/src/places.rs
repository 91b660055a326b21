//! How many connections each may have: addresses as long as they have shown nothing, tenants afterwards.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cert_chain::Tenant;
use rate_limit::Quota;

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
    handshakes: HashMap<IpAddr, usize>,
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
                connections: HashMap::new(),
                begun: HashMap::new(),
                all_begun: Quota::per_minute(HANDSHAKES_PER_MINUTE, now),
            }),
            of_tenant: usize::try_from(of_tenant).unwrap_or(usize::MAX),
        })
    }

    /// A place for a handshake, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr, now: Instant) -> Option<Entering> {
        let from = network_of(from);
        let mut taken = self.taken();
        let all: usize = taken.handshakes.values().sum();
        let own = taken.handshakes.get(&from).copied().unwrap_or(0);
        if all >= HANDSHAKES || own >= HANDSHAKES_OF_ONE || !taken.may_begin(from, now) {
            return None;
        }
        *taken.handshakes.entry(from).or_default() += 1;
        Some(Entering {
            places: Arc::clone(self),
            from,
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
}

impl Entering {
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
        give_back(&mut self.places.taken().handshakes, &self.from);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        give_back(&mut self.places.taken().connections, &self.tenant);
    }
}

fn give_back<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
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
