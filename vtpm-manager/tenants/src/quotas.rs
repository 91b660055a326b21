//! How often each tenant may ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cert_chain::Tenant;
use rate_limit::Quota;
use tokio::sync::Semaphore;

use crate::settings::Limits;

/// What each tenant has left.
#[derive(Debug)]
pub(crate) struct Quotas {
    limits: Limits,
    tenants: Mutex<HashMap<Tenant, OfTenant>>,
}

#[derive(Debug)]
struct OfTenant {
    requests: Quota,
    evidence: Quota,
    /// One request for evidence of a tenant is worked at, however many connections it has.
    turn: Arc<Semaphore>,
    asked: Instant,
}

/// Tenants that are told apart; the one that asked longest ago is forgotten, with what it used up.
const MOST_TENANTS: usize = 4096;

impl Quotas {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            tenants: Mutex::default(),
        }
    }

    /// Takes a request into account; false if it is one too many.
    pub(crate) fn admit(&self, tenant: &Tenant, now: Instant) -> bool {
        self.of(tenant, now, |of| of.requests.admit(now))
    }

    /// The same with one for evidence, beside: the tenant's turn, to be waited for.
    pub(crate) fn admit_evidence(&self, tenant: &Tenant, now: Instant) -> Option<Arc<Semaphore>> {
        self.of(tenant, now, |of| {
            of.evidence.admit(now).then(|| Arc::clone(&of.turn))
        })
    }

    fn of<T>(&self, tenant: &Tenant, now: Instant, act: impl FnOnce(&mut OfTenant) -> T) -> T {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MOST_TENANTS && !tenants.contains_key(tenant) {
            let oldest = tenants.iter().min_by_key(|(_, of)| of.asked);
            if let Some(oldest) = oldest.map(|(tenant, _)| tenant.clone()) {
                tenants.remove(&oldest);
            }
        }
        let limits = self.limits;
        let of = tenants.entry(tenant.clone()).or_insert_with(|| OfTenant {
            requests: Quota::per_minute(limits.requests_per_minute, now),
            evidence: Quota::per_minute(limits.evidence_per_minute, now),
            turn: Arc::new(Semaphore::new(1)),
            asked: now,
        });
        of.asked = now;
        act(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_tenant_uses_up_others_still_have() -> anyhow::Result<()> {
        let limits = Limits {
            requests_per_minute: 40,
            evidence_per_minute: 8,
            ..Limits::default()
        };
        let (quotas, now) = (Quotas::new(limits), Instant::now());
        let (acme, other) = ("acme".parse()?, "other".parse()?);
        assert_eq!((0..100).filter(|_| quotas.admit(&acme, now)).count(), 10);
        let evidence = (0..100).filter(|_| quotas.admit_evidence(&acme, now).is_some());
        assert_eq!(evidence.count(), 2);
        assert!(quotas.admit(&other, now));
        assert!(quotas.admit_evidence(&other, now).is_some());
        Ok(())
    }

    #[test]
    fn tenants_beyond_number_cost_no_memory() -> anyhow::Result<()> {
        let (quotas, now) = (Quotas::new(Limits::default()), Instant::now());
        for number in 0..2 * MOST_TENANTS {
            quotas.admit(&format!("tenant-{number}").parse()?, now);
        }
        let tenants = quotas
            .tenants
            .lock()
            .map_err(|_| anyhow::anyhow!("poisoned"))?;
        assert_eq!(tenants.len(), MOST_TENANTS);
        Ok(())
    }
}
