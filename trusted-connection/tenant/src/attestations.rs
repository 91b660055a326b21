//! Evidence of VMs on all hosts, and what policies make of it.
//!
//! Each host gets a nonce of its own: what one host answers is worth nothing as the answer of another one,
//! not even where both are asked at the same time.

use std::collections::BTreeSet;

use attestation::evidence_set::{SetResult, VmOutcome, appraise_set, said_purpose};
use attestation::{EvidenceSet, Nonce, QuotePurpose, Refusal, Verdict};
use cert_chain::{HostName, VmId};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;

use crate::error::HostError;
use crate::host::Host;
use crate::policies::{Policies, Which};
use crate::tenant::{FromHost, Tenant};

/// What came of asking all hosts.
#[derive(Debug)]
pub struct Attestation {
    /// By host, in the order of the settings.
    pub hosts: Vec<FromHost<JudgedHost>>,
    /// VMs that were meant, and that no host answered for.
    pub missing: Vec<VmId>,
}

/// What one host answered, and what it is worth.
#[derive(Debug)]
pub struct JudgedHost {
    /// What the evidence had to answer.
    pub nonce: Nonce,
    /// The evidence set as it came; empty if the host has none of the VMs that are meant.
    pub evidence: Vec<u8>,
    /// Which VMs it was asked for; none: for all.
    pub asked: Option<Vec<VmId>>,
    /// What it is worth.
    pub outcome: SetOutcome,
}

/// What an evidence set is worth.
#[derive(Debug)]
pub enum SetOutcome {
    /// The host has no VM that is meant.
    Nothing,
    /// It proves nothing.
    Refused(SetRefusal),
    /// The host's part is genuine, and each VM's was appraised: one result for each policy.
    Appraised(Vec<SetResult>),
}

/// Why a set as a whole proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetRefusal {
    /// It is no evidence for this.
    #[error("{}", .0.explanation())]
    Evidence(Refusal),
    /// It is evidence of another host.
    #[error("the evidence is that of the host {found}, but {expected} was asked")]
    OtherHost {
        /// Who was asked.
        expected: HostName,
        /// Whose it is.
        found: HostName,
    },
}

impl Tenant {
    /// Has the VMs that are meant quoted by their hosts, and judges the evidence as of now.
    pub async fn attest(&self, which: &Which, policies: &Policies) -> Attestation {
        let hosts = self.each(|host| ask(host, which, policies)).await;
        let meant: BTreeSet<VmId> = match which {
            Which::All => policies.named().collect(),
            Which::These(vms) => vms.iter().copied().collect(),
        };
        let answered = hosts.iter().filter_map(|from| from.answer.as_ref().ok());
        let found: BTreeSet<VmId> = answered.flat_map(JudgedHost::vms).collect();
        let missing = meant.difference(&found).copied().collect();
        Attestation { hosts, missing }
    }
}

async fn ask(host: &Host, which: &Which, policies: &Policies) -> Result<JudgedHost, HostError> {
    let nonce = fresh_nonce()?;
    let asked = match which {
        Which::All => None,
        // A host knows nothing of VMs on others, and refuses a request for one it does not have.
        Which::These(vms) => {
            let there = host.vms().await?;
            let there: BTreeSet<VmId> = there.vms.iter().map(|vm| vm.vm).collect();
            let of_host = vms.iter().filter(|vm| there.contains(vm));
            Some(of_host.copied().collect::<Vec<VmId>>())
        }
    };
    if asked.as_ref().is_some_and(Vec::is_empty) {
        return Ok(JudgedHost {
            nonce,
            evidence: Vec::new(),
            asked,
            outcome: SetOutcome::Nothing,
        });
    }
    let evidence = host.evidence(&nonce, asked.as_deref()).await?;
    let at = UnixTime::now();
    let outcome = judge(
        &evidence,
        &nonce,
        asked.as_deref(),
        policies,
        host.name(),
        at,
    )?;
    Ok(JudgedHost {
        nonce,
        evidence,
        asked,
        outcome,
    })
}

/// What an answer of `host` is worth that must be of `asked`, or of whatever VMs the host has: evidence for
/// tenants, for this nonce, by that very host, as of `at`.
///
/// # Errors
///
/// What is no evidence set at all.
pub fn judge(
    evidence: &[u8],
    nonce: &Nonce,
    asked: Option<&[VmId]>,
    policies: &Policies,
    host: &HostName,
    at: UnixTime,
) -> Result<SetOutcome, HostError> {
    let expected = QuotePurpose::Tenant;
    if let Some(found) = said_purpose(evidence).filter(|found| *found != expected) {
        let refusal = Refusal::Purpose { found, expected };
        return Ok(SetOutcome::Refused(SetRefusal::Evidence(refusal)));
    }
    let set = EvidenceSet::from_cbor(evidence).map_err(|error| HostError::of_set(&error))?;
    let meant: BTreeSet<VmId> = match asked {
        Some(asked) => asked.iter().copied().collect(),
        None => said_vms(&set)?,
    };
    let mut results = Vec::new();
    for (policy, vms) in policies.by_policy(&meant) {
        let anchors = policy.anchors().with_lists(policies.lists());
        let verified = match set.verify(nonce, &anchors, at) {
            Ok(verified) => verified,
            Err(refusal) => return Ok(SetOutcome::Refused(SetRefusal::Evidence(refusal))),
        };
        let of_other_host = (verified.vms().iter().flatten())
            .map(|evidence| evidence.chain().host())
            .find(|found| *found != host);
        if let Some(found) = of_other_host {
            return Ok(SetOutcome::Refused(SetRefusal::OtherHost {
                expected: host.clone(),
                found: found.clone(),
            }));
        }
        results.push(appraise_set(verified, policy).of(&vms));
    }
    Ok(match results.is_empty() {
        true => SetOutcome::Nothing,
        false => SetOutcome::Appraised(results),
    })
}

/// Every VM that a set says something of.
fn said_vms(set: &EvidenceSet) -> Result<BTreeSet<VmId>, HostError> {
    let mut vms: BTreeSet<VmId> = set.unquoted.iter().map(|unquoted| unquoted.vm).collect();
    for vm in &set.vms {
        vms.insert(vm.said_vm().ok_or_else(|| HostError::Answer {
            expected: "an evidence set",
            reason: "it does not say of which VM a part of it is".to_owned(),
        })?);
    }
    Ok(vms)
}

fn fresh_nonce() -> Result<Nonce, HostError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| HostError::Random)?;
    Nonce::new(bytes).map_err(|_| HostError::Random)
}

impl Attestation {
    /// The worst verdict; none if no host has a VM that is meant. A VM that no host answers for is a warning
    /// at best.
    pub fn verdict(&self) -> Option<Verdict> {
        let answered = self
            .hosts
            .iter()
            .filter_map(|from| from.answer.as_ref().ok());
        let verdicts = answered.filter_map(|judged| judged.outcome.verdict());
        let missing = (!self.missing.is_empty()).then_some(Verdict::Warning);
        verdicts.chain(missing).max()
    }

    /// Whether every host answered.
    pub fn is_complete(&self) -> bool {
        self.hosts.iter().all(|from| from.answer.is_ok())
    }
}

impl JudgedHost {
    /// The VMs that it was asked for, or says something of.
    fn vms(&self) -> Vec<VmId> {
        let mut vms = self.asked.clone().unwrap_or_default();
        if let SetOutcome::Appraised(results) = &self.outcome {
            for result in results {
                vms.extend(result.vms().iter().filter_map(VmOutcome::vm));
                vms.extend(result.unquoted().iter().map(|unquoted| unquoted.vm));
            }
        }
        vms
    }
}

impl SetOutcome {
    /// The worst verdict; none if there was nothing to judge.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Nothing => None,
            Self::Refused(_) => Some(Verdict::Contraindicated),
            Self::Appraised(results) => results.iter().map(SetResult::verdict).max(),
        }
    }
}

impl SetRefusal {
    /// A short name for programs, which stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Evidence(refusal) => refusal.code(),
            Self::OtherHost { .. } => "other-host",
        }
    }

    /// What whoever asked can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Evidence(refusal) => refusal.remedy(),
            Self::OtherHost { .. } => {
                "compare the names and addresses in the settings; if they are right, treat the answer as \
                 relayed"
            }
        }
    }
}
