//! Appraisal: verified evidence against a policy, bottom-up.

use std::collections::BTreeMap;

use cert_chain::Digest32;
use rustls_pki_types::UnixTime;

use crate::event_log::{Event, EventType, HashAlgorithm};
use crate::host_leaf::LaunchMeasurement;
use crate::policy::{Expectation, Policy};
use crate::reference::{EventReference, ReferenceValues};
use crate::refusal::Layer;
use crate::result::{AttestationResult, Claim, LayerResult};
use crate::verification::{VerifiedEvidence, VerifiedLayer};

/// Compares verified evidence with a policy: first the host, then the VM, whose verdict is
/// never better than its host's.
///
/// `at` is the time of the appraisal; the result expires at its policy's word, and not after
/// the certificates.
pub fn appraise(evidence: VerifiedEvidence, policy: &Policy, at: UnixTime) -> AttestationResult {
    let expect = policy.expectation();

    let mut host = LayerResult::new();
    check_host_identity(&mut host, &evidence, expect);
    check_boot(
        &mut host,
        evidence.layer(Layer::Host),
        policy.host_reference(),
    );

    let mut vm = LayerResult::new();
    check_vm_identity(&mut vm, &evidence, expect);
    check_boot(&mut vm, evidence.layer(Layer::Vm), policy.vm_reference());
    vm.limit_to(&host);

    AttestationResult::new(evidence, policy, host, vm, at)
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
        let listed: Vec<String> = expect.hosts.iter().map(ToString::to_string).collect();
        result.contradict(
            Claim::Identity,
            "host-unexpected",
            format!(
                "the VM runs on {host}; the policy allows {}",
                listed.join(", ")
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
    if let Some(accepted) = &expect.launch {
        match leaf.launch {
            LaunchMeasurement::Measured(found) if accepted.contains(&found) => {
                result.approve(Claim::Configuration);
            }
            LaunchMeasurement::Measured(found) => result.contradict(
                Claim::Configuration,
                "launch-unexpected",
                format!(
                    "the VM was launched as {found}; accepted: {}",
                    list(accepted)
                ),
            ),
            LaunchMeasurement::NotMeasured => result.contradict(
                Claim::Configuration,
                "launch-not-measured",
                "the host did not measure the VM before it started, and the policy asks for it"
                    .to_owned(),
            ),
        }
    }
}

/// What booted: single events first, because they name what differs; then whole PCRs.
fn check_boot(result: &mut LayerResult, layer: &VerifiedLayer, reference: &ReferenceValues) {
    result.approve(Claim::Executables);
    check_events(result, layer, &reference.events);
    for (pcr, found) in layer.pcrs() {
        match reference.pcrs.get(pcr) {
            Some(accepted) if accepted.contains(found) => {}
            Some(accepted) => result.contradict(
                Claim::Executables,
                "pcr-unexpected",
                format!(
                    "PCR {pcr} ({}): found {found}, accepted {}",
                    measures(*pcr),
                    list(accepted)
                ),
            ),
            None if reference.ignored_pcrs.contains(pcr) => {}
            None if covered_by_events(*pcr, layer, &reference.events) => {}
            None => result.warn(
                Claim::Executables,
                "pcr-without-reference",
                format!(
                    "PCR {pcr} ({}) has no reference value: add one, or list the PCR in ignored_pcrs",
                    measures(*pcr)
                ),
            ),
        }
    }
    for pcr in reference.pcrs.keys() {
        if !layer.pcrs().contains_key(pcr) {
            result.contradict(
                Claim::Executables,
                "pcr-not-quoted",
                format!(
                    "PCR {pcr} ({}) has a reference value, but was not quoted",
                    measures(*pcr)
                ),
            );
        }
    }
}

fn check_events(result: &mut LayerResult, layer: &VerifiedLayer, references: &[EventReference]) {
    let mut kinds: BTreeMap<(u8, EventType), Vec<&EventReference>> = BTreeMap::new();
    for reference in references {
        kinds
            .entry((reference.pcr, reference.event_type))
            .or_default()
            .push(reference);
    }
    for ((pcr, event_type), references) in kinds {
        if !layer.pcrs().contains_key(&pcr) {
            result.contradict(
                Claim::Executables,
                "pcr-not-quoted",
                format!("PCR {pcr} has reference events, but was not quoted"),
            );
            continue;
        }
        let found: Vec<Digest32> = layer
            .log()
            .events()
            .iter()
            .filter(|event| event.pcr == pcr && event.event_type == event_type)
            .filter_map(sha256)
            .collect();
        let names: Vec<&str> = references.iter().map(|r| r.name.as_str()).collect();
        let names = names.join(" / ");
        let accepted: Vec<Digest32> = references
            .iter()
            .flat_map(|reference| reference.digests.iter().copied())
            .collect();
        for digest in found.iter().filter(|digest| !accepted.contains(digest)) {
            result.contradict(
                Claim::Executables,
                "event-unexpected",
                format!(
                    "{names} ({event_type} in PCR {pcr}): found {digest}, accepted {}",
                    list(&accepted)
                ),
            );
        }
        for reference in references {
            if let Some(digest) = found.iter().find(|f| reference.digests.contains(f)) {
                result.booted(&reference.name, *digest);
            } else {
                result.contradict(
                    Claim::Executables,
                    "event-missing",
                    format!(
                        "{} ({event_type} in PCR {pcr}): nothing acceptable was measured",
                        reference.name
                    ),
                );
            }
        }
    }
}

/// Whether references speak of every event that went into the PCR, separators aside: those say
/// nothing but that a phase ended.
fn covered_by_events(pcr: u8, layer: &VerifiedLayer, references: &[EventReference]) -> bool {
    let spoken_of = |event: &Event| {
        event.event_type == EventType::SEPARATOR
            || references
                .iter()
                .any(|r| r.pcr == pcr && r.event_type == event.event_type)
    };
    layer
        .log()
        .events()
        .iter()
        .filter(|event| event.pcr == pcr && event.is_measured())
        .all(spoken_of)
}

fn sha256(event: &Event) -> Option<Digest32> {
    let digest = event.digest(HashAlgorithm::Sha256)?;
    <[u8; 32]>::try_from(digest).ok().map(Digest32::new)
}

/// What goes into a PCR (PFP §3.3.4 "PCR Usage").
fn measures(pcr: u8) -> &'static str {
    match pcr {
        0 => "firmware code",
        1 => "firmware configuration",
        2 => "drivers and option ROMs",
        3 => "their configuration",
        4 => "boot loader and kernel",
        5 => "boot loader configuration",
        6 => "platform events",
        7 => "secure boot policy",
        8 | 9 => "what the boot loader loaded",
        14 => "machine owner keys",
        _ => "other measurements",
    }
}

fn list(digests: &[Digest32]) -> String {
    let texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(" or ")
    }
}
