//! Appraisal: verified evidence against a policy, bottom-up.

mod anchoring;
pub(crate) mod boot;
mod launch;
pub(crate) mod listing;
pub(crate) mod without_log;

use crate::host_leaf::Durability;
use crate::policy::{Expectation, Policy};
use crate::refusal::Layer;
use crate::result::{AttestationResult, Claim, LayerResult};
use crate::verification::VerifiedEvidence;

use anchoring::check_anchoring;
use launch::{check_launch, check_transport};
use listing::list;
use without_log::{check_boot, check_vm_boot};

/// Compares verified evidence with a policy: first the host, then the VM, whose verdict is
/// never better than its host's.
///
/// The appraisal is of the time as of which the evidence was verified; the result expires when
/// its policy says, and not after the certificates and the revocation list. Evidence that was verified
/// under other roots than this policy's, or without the revocation list that it demands, is
/// contraindicated.
///
/// Identities come first. What booted is compared only where host, VM and tenant are those that the
/// policy is about: reference values say nothing about others.
pub fn appraise(evidence: VerifiedEvidence, policy: &Policy) -> AttestationResult {
    let host = appraise_host(&evidence, policy);
    appraise_vm(evidence, host, policy)
}

/// Compares the host below a VM with a policy.
pub(crate) fn appraise_host(evidence: &VerifiedEvidence, policy: &Policy) -> LayerResult {
    let mut host = LayerResult::new();
    check_roots(&mut host, evidence, policy);
    check_host_identity(&mut host, evidence, policy.expectation());
    if !host.contradicts(Claim::Identity) {
        let reference = policy.host_reference();
        check_boot(&mut host, evidence.layer(Layer::Host), reference);
    }
    host
}

/// Compares a VM with a policy, below which this was found about its host.
pub(crate) fn appraise_vm(
    evidence: VerifiedEvidence,
    host: LayerResult,
    policy: &Policy,
) -> AttestationResult {
    let expect = policy.expectation();
    let mut vm = LayerResult::new();
    check_vm_identity(&mut vm, &evidence, expect);
    let meant = !host.contradicts(Claim::Identity) && !vm.contradicts(Claim::Identity);
    check_vm_state(&mut vm, &evidence, expect);
    let leaf = evidence.leaf();
    check_launch(&mut vm, &leaf.launch, policy.launch());
    check_transport(&mut vm, leaf.transport, expect.firmware_not_measured);
    check_anchoring(&mut vm, evidence.chain().host(), leaf, expect);
    if meant {
        check_vm_boot(&mut vm, evidence.layer(Layer::Vm), leaf.transport, policy);
    }
    vm.limit_to(&host);

    AttestationResult::new(evidence, policy, host, vm)
}

fn check_roots(result: &mut LayerResult, evidence: &VerifiedEvidence, policy: &Policy) {
    let trusted = policy.anchors().digest();
    if evidence.anchors() != trusted {
        result.contradict(
            Claim::Identity,
            "roots-unexpected",
            format!(
                "the evidence was verified under the roots {}; the policy trusts {trusted}",
                evidence.anchors()
            ),
        );
    }
    let demand = policy.anchors().demand();
    if !(evidence.chain().revocation()).meets(demand, evidence.verified_at()) {
        result.contradict(
            Claim::Identity,
            "revocation-unchecked",
            "the evidence was verified without the revocation list that the policy demands"
                .to_owned(),
        );
    }
}

fn check_host_identity(
    result: &mut LayerResult,
    evidence: &VerifiedEvidence,
    expect: &Expectation,
) {
    let host = evidence.chain().host();
    if expect.hosts.contains(host) {
        result.approve(Claim::Identity);
    } else {
        result.contradict(
            Claim::Identity,
            "host-unexpected",
            format!(
                "the VM runs on {host}; the policy allows {}",
                list(&expect.hosts)
            ),
        );
    }
}

fn check_vm_identity(result: &mut LayerResult, evidence: &VerifiedEvidence, expect: &Expectation) {
    let leaf = evidence.leaf();
    result.approve(Claim::Identity);
    if let Some(vm) = expect.vm.filter(|vm| *vm != leaf.vm) {
        result.contradict(
            Claim::Identity,
            "vm-unexpected",
            format!("the evidence is of VM {}; the policy expects {vm}", leaf.vm),
        );
    }
    if let Some(tenant) = expect
        .tenant
        .as_ref()
        .filter(|tenant| **tenant != leaf.tenant)
    {
        result.contradict(
            Claim::Identity,
            "tenant-unexpected",
            format!(
                "the VM belongs to {}; the policy expects {tenant}",
                leaf.tenant
            ),
        );
    }
}

fn check_vm_state(result: &mut LayerResult, evidence: &VerifiedEvidence, expect: &Expectation) {
    let leaf = evidence.leaf();
    if leaf.generation < expect.min_generation() {
        result.contradict(
            Claim::Identity,
            "generation-too-low",
            format!(
                "the vRoT's state is of generation {}; the policy asks for {} or later",
                leaf.generation,
                expect.min_generation()
            ),
        );
    }
    if leaf.durability == Durability::Degraded {
        result.warn(
            Claim::Configuration,
            "state-degraded",
            "the vRoT answered a command before its state was durable: a loss of power on its \
             host could take that back"
                .to_owned(),
        );
    }
}
