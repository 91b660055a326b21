//! The VMs of a set against a policy. Their host is appraised once.

use cert_chain::VmId;

use super::Unquoted;
use super::verification::{VerifiedSet, VmRefusal};
use crate::appraisal::{appraise_host, appraise_vm};
use crate::policy::Policy;
use crate::result::{AttestationResult, LayerResult};
use crate::verdict::Verdict;

/// What a policy makes of a set. Only [`appraise_set`] makes one.
#[derive(Debug)]
pub struct SetResult {
    vms: Vec<VmOutcome>,
    unquoted: Vec<Unquoted>,
}

/// What came of one VM of a set.
#[derive(Debug)]
pub enum VmOutcome {
    /// Its evidence is genuine, and was appraised.
    Appraised(Box<AttestationResult>),
    /// Its evidence proves nothing.
    Refused(VmRefusal),
}

/// Compares each VM of a set with a policy, below what the policy makes of their host.
pub fn appraise_set(set: VerifiedSet, policy: &Policy) -> SetResult {
    // One certificate, one quote and one log: what is found about the host is the same for all.
    let mut host: Option<LayerResult> = None;
    let vms = set.vms.into_iter().map(|vm| match vm {
        Ok(evidence) => {
            let host = host.get_or_insert_with(|| appraise_host(&evidence, policy));
            let result = appraise_vm(evidence, host.clone(), policy);
            VmOutcome::Appraised(Box::new(result))
        }
        Err(refusal) => VmOutcome::Refused(refusal),
    });
    SetResult {
        vms: vms.collect(),
        unquoted: set.unquoted,
    }
}

impl SetResult {
    /// What came of each VM.
    pub fn vms(&self) -> &[VmOutcome] {
        &self.vms
    }

    /// The VMs that the host says it could not quote.
    pub fn unquoted(&self) -> &[Unquoted] {
        &self.unquoted
    }

    /// The same of these VMs alone. One that the set says nothing of counts as not quoted.
    #[must_use]
    pub fn of(self, meant: &[VmId]) -> Self {
        let is_meant = |vm: Option<VmId>| vm.is_some_and(|vm| meant.contains(&vm));
        let mut result = Self {
            vms: self.vms,
            unquoted: self.unquoted,
        };
        result.vms.retain(|vm| is_meant(vm.vm()));
        result
            .unquoted
            .retain(|unquoted| is_meant(Some(unquoted.vm)));
        for vm in meant {
            let told = result.vms.iter().any(|told| told.vm() == Some(*vm))
                || result.unquoted.iter().any(|unquoted| unquoted.vm == *vm);
            if !told {
                result.unquoted.push(Unquoted {
                    vm: *vm,
                    reason: "the set has nothing of it".to_owned(),
                });
            }
        }
        result
    }

    /// The verdict on all: the worst one. Where a VM could not be quoted, or there is none, it is a
    /// warning at best: nothing is known of it.
    pub fn verdict(&self) -> Verdict {
        let known = match self.vms.is_empty() || !self.unquoted.is_empty() {
            true => Verdict::Warning,
            false => Verdict::Affirming,
        };
        let verdicts = self.vms.iter().map(VmOutcome::verdict);
        verdicts.fold(known, Verdict::max)
    }
}

impl VmOutcome {
    /// Which VM it is; of one whose evidence is refused, which it was said to be.
    pub fn vm(&self) -> Option<VmId> {
        match self {
            Self::Appraised(result) => Some(result.evidence().leaf().vm),
            Self::Refused(refused) => refused.vm,
        }
    }

    /// The verdict on it.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Appraised(result) => result.verdict(),
            Self::Refused(_) => Verdict::Contraindicated,
        }
    }
}
