//! What is counted, for metrics: of all tenants together.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened since the manager started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections whose certificate is a tenant's.
    admitted: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
    requests: [AtomicU64; CountedRequests::ALL.len()],
}

/// Why somebody did not get what it wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many connections, or handshakes.
    Crowded,
    /// No TLS, or no certificate of a tenant.
    Handshake,
    /// A certificate that does not count any more.
    Ended,
    /// Too many requests.
    Quota,
}

/// Requests by what they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedRequests {
    /// All VMs.
    List,
    /// One VM.
    Show,
    /// Evidence.
    Evidence,
    /// Events.
    Events,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Crowded, Self::Handshake, Self::Ended, Self::Quota];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Handshake => "handshake",
            Self::Ended => "certificate-ended",
            Self::Quota => "quota",
        }
    }
}

impl CountedRequests {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::List, Self::Show, Self::Evidence, Self::Events];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Show => "show",
            Self::Evidence => "evidence",
            Self::Events => "events",
        }
    }
}

impl Counts {
    /// Connections that were admitted.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// How often somebody was refused for this.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        (self.refusals.get(refusal as usize)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How often this was asked for.
    pub fn requested(&self, requests: CountedRequests) -> u64 {
        (self.requests.get(requests as usize)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn admit(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        if let Some(count) = self.refusals.get(refusal as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn request(&self, requests: CountedRequests) {
        if let Some(count) = self.requests.get(requests as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
