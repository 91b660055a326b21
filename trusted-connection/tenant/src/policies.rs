//! What is expected of which VM.

use std::collections::BTreeSet;
use std::sync::Arc;

use attestation::Policy;
use cert_chain::{RevocationLists, VmId};

/// Which VMs are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that the hosts have of this tenant, and those that have a policy of their own.
    All,
    /// These, wherever they are.
    These(Vec<VmId>),
}

/// What is expected of which VM, and revocation lists for all of them.
#[derive(Debug)]
pub struct Policies {
    general: Option<Arc<Policy>>,
    own: Vec<(Arc<Policy>, Vec<VmId>)>,
    lists: RevocationLists,
}

impl Policies {
    /// One policy for all VMs that get none of their own.
    pub fn new(general: Option<Policy>) -> Self {
        Self {
            general: general.map(Arc::new),
            own: Vec::new(),
            lists: RevocationLists::default(),
        }
    }

    /// A policy for some VMs.
    pub fn add(&mut self, policy: Policy, vms: Vec<VmId>) {
        self.own.push((Arc::new(policy), vms));
    }

    /// The same with revocation lists beside those that evidence carries.
    #[must_use]
    pub fn with_lists(self, lists: RevocationLists) -> Self {
        Self { lists, ..self }
    }

    /// The VMs that have policies of their own.
    pub fn named(&self) -> impl Iterator<Item = VmId> {
        self.own.iter().flat_map(|(_, vms)| vms.iter().copied())
    }

    /// A VM for which there is no policy, if there is one among those that are meant.
    pub fn without_policy<'v>(&self, which: &'v Which) -> Option<Option<&'v VmId>> {
        match which {
            _ if self.general.is_some() => None,
            Which::All => Some(None),
            Which::These(vms) => {
                let own: BTreeSet<VmId> = self.named().collect();
                vms.iter().find(|vm| !own.contains(vm)).map(Some)
            }
        }
    }

    /// Which policy counts for which of these VMs.
    pub(crate) fn by_policy(&self, vms: &BTreeSet<VmId>) -> Vec<(&Policy, Vec<VmId>)> {
        let own: BTreeSet<VmId> = self.named().collect();
        let mut groups: Vec<(&Policy, Vec<VmId>)> = Vec::new();
        if let Some(general) = &self.general {
            groups.push((general, vms.difference(&own).copied().collect()));
        }
        for (policy, named) in &self.own {
            let meant = named.iter().filter(|vm| vms.contains(vm));
            groups.push((policy, meant.copied().collect()));
        }
        groups.retain(|(_, vms)| !vms.is_empty());
        groups
    }

    /// Revocation lists beside those that evidence carries.
    pub(crate) fn lists(&self) -> &RevocationLists {
        &self.lists
    }
}
