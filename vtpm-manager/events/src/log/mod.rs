//! The owner of all events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api_types::wire::{EventDetails, EventKind, EventLine};
use cert_chain::Tenant;
use tokio::sync::watch;
use uuid::Uuid;

use super::happening::{Happening, Place};
use super::kept::Kept;

/// The newest events of the host, and of each tenant.
#[derive(Debug)]
pub struct EventLog {
    /// Which start of the manager this is.
    manager: Uuid,
    sequences: Mutex<Sequences>,
    ending: watch::Sender<bool>,
}

/// Which events are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the whole host.
    Host,
    /// Those of one tenant's VMs, and of the host while the tenant has VMs there.
    Tenant(Tenant),
}

#[derive(Debug)]
struct Sequences {
    host: Kept,
    tenants: HashMap<Tenant, Kept>,
    began: Instant,
    /// One more than the highest number of any sequence that was given up.
    given_up: Option<u64>,
}

/// Some hundred bytes each: what a thousand vRoTs tell when all of them are started.
const KEPT_OF_HOST: usize = 8192;
/// The same of a tenant: it is not fewer because others have many.
const KEPT_OF_TENANT: usize = 1024;
/// Tenants whose events are kept; beyond, the sequence of that which nothing happened to for longest
/// and that nobody follows is given up.
const MOST_TENANTS: usize = 512;

impl Default for EventLog {
    fn default() -> Self {
        Self {
            manager: Uuid::new_v4(),
            sequences: Mutex::new(Sequences {
                host: Kept::new(1, KEPT_OF_HOST),
                tenants: HashMap::new(),
                began: Instant::now(),
                given_up: None,
            }),
            ending: watch::Sender::new(false),
        }
    }
}

impl EventLog {
    /// Tells of something that happened to a vRoT. Waits for nobody.
    pub fn tell(&self, place: Place, kind: EventKind, details: EventDetails) {
        let mut sequences = self.sequences();
        let tenant = place.tenant.clone();
        let happening = sequences.happening(Some(place), kind, details);
        sequences.host.push(Arc::clone(&happening));
        sequences.of(&tenant).push(happening);
    }

    /// Tells of something that happened to the host, and these tenants of it. Waits for nobody.
    pub fn tell_all<'a>(
        &self,
        tenants: impl IntoIterator<Item = &'a Tenant>,
        kind: EventKind,
        details: EventDetails,
    ) {
        let mut sequences = self.sequences();
        let happening = sequences.happening(None, kind, details);
        sequences.host.push(Arc::clone(&happening));
        for tenant in tenants {
            sequences.of(tenant).push(Arc::clone(&happening));
        }
    }

    /// What somebody needs who follows events after a number: see [`EventLog::follow`].
    pub(super) fn begin(
        &self,
        scope: &Scope,
        after: Option<u64>,
        of: Option<Uuid>,
    ) -> (EventLine, u64, watch::Receiver<u64>) {
        let mut sequences = self.sequences();
        let kept = sequences.in_scope(scope);
        let is_known = of.is_none_or(|manager| manager == self.manager);
        let position = match after {
            None => kept.next(),
            Some(after) if is_known && after < kept.next() => after.saturating_add(1),
            Some(_) => kept.oldest(),
        };
        let hello = EventLine::Hello {
            manager: self.manager,
            oldest: kept.oldest(),
            next: kept.next(),
        };
        (hello, position, kept.subscribe())
    }

    /// Is told when all followers are to end.
    pub(super) fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Ends all followers: the manager ends.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// How many follow.
    pub fn followers(&self) -> usize {
        self.ending.receiver_count()
    }

    /// How much has happened.
    pub fn count(&self) -> u64 {
        self.sequences().host.next().saturating_sub(1)
    }

    pub(super) fn read(&self, scope: &Scope, position: &mut u64, most: usize) -> Vec<EventLine> {
        self.sequences().in_scope(scope).read(position, most)
    }

    fn sequences(&self) -> MutexGuard<'_, Sequences> {
        self.sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sequences {
    fn happening(
        &self,
        place: Option<Place>,
        kind: EventKind,
        details: EventDetails,
    ) -> Arc<Happening> {
        Arc::new(Happening::now(place, kind, details, self.host.next()))
    }

    fn in_scope(&mut self, scope: &Scope) -> &Kept {
        match scope {
            Scope::Host => &self.host,
            Scope::Tenant(tenant) => self.of(tenant),
        }
    }

    fn of(&mut self, tenant: &Tenant) -> &mut Kept {
        if self.tenants.len() >= MOST_TENANTS && !self.tenants.contains_key(tenant) {
            self.give_one_up();
        }
        let first = self.first();
        match self.tenants.entry(tenant.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Kept::new(first, KEPT_OF_TENANT)),
        }
    }

    /// Where the numbers of a tenant begin that is not known, or not any more: no number comes twice, and none
    /// tells how much happened to others. So once a sequence was given up, they begin at the time in
    /// microseconds, of which each has fewer events than one.
    fn first(&self) -> u64 {
        self.given_up.map_or(1, |beyond| {
            let now = u64::try_from(self.began.elapsed().as_micros());
            beyond.max(now.unwrap_or(u64::MAX))
        })
    }

    fn give_one_up(&mut self) {
        let unfollowed = self
            .tenants
            .iter()
            .filter(|(_, kept)| !kept.has_followers());
        let oldest = unfollowed.reduce(|one, other| match other.1.is_older_than(one.1) {
            true => other,
            false => one,
        });
        let Some(tenant) = oldest.map(|(tenant, _)| tenant.clone()) else {
            return;
        };
        if let Some(kept) = self.tenants.remove(&tenant) {
            self.given_up = self.given_up.max(Some(kept.next()));
        }
    }
}

#[cfg(test)]
mod tests;
