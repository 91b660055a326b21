//! Whose VMs are not started unless what they are launched with was measured.

use std::collections::BTreeSet;

use cert_chain::Tenant;
use serde::Deserialize;

/// The section `[launch]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchConfig {
    /// Whether all VMs have to be measured.
    pub required: bool,
    /// The tenants whose VMs have to be.
    pub required_tenants: BTreeSet<Tenant>,
}

impl LaunchConfig {
    /// Whether a tenant's VMs have to be measured.
    pub fn requires(&self, tenant: &Tenant) -> bool {
        self.required || self.required_tenants.contains(tenant)
    }
}
