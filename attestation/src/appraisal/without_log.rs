//! A layer whose evidence has no boot log.

use super::boot::{check_log, check_pcrs};
use crate::host_leaf::TpmTransport;
use crate::policy::Policy;
use crate::policy_without_log::InsteadOfLog;
use crate::reference::ReferenceValues;
use crate::result::{Claim, LayerResult};
use crate::verification::{VerifiedBoot, VerifiedLayer};

/// Compares what a host or a device booted with its reference values: both have a log.
pub(crate) fn check_boot(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    reference: &ReferenceValues,
) {
    match layer.boot() {
        VerifiedBoot::Log(log) => check_log(result, layer, log, reference),
        VerifiedBoot::PcrsAlone => absent(result, "and only that of a VM may be missing"),
    }
}

/// Compares what a VM booted with a policy. What was measured of its launch is compared elsewhere.
pub(super) fn check_vm_boot(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    transport: TpmTransport,
    policy: &Policy,
) {
    match layer.boot() {
        VerifiedBoot::Log(log) => match policy.vm_reference() {
            Some(reference) => check_log(result, layer, log, reference),
            None => result.contradict(
                Claim::Executables,
                "no-reference-values",
                "the policy has no reference values for what the VM booted: it is about VMs without a \
                 boot log alone"
                    .to_owned(),
            ),
        },
        VerifiedBoot::PcrsAlone => check_vm_without_log(result, layer, transport, policy),
    }
}

fn check_vm_without_log(
    result: &mut LayerResult,
    layer: &VerifiedLayer,
    transport: TpmTransport,
    policy: &Policy,
) {
    let Some(instead) = policy.vm_without_log() else {
        return absent(
            result,
            "and the policy does not say what it demands instead: [vm.without_log] would",
        );
    };
    result.approve(Claim::Executables);
    if instead.demands(InsteadOfLog::PinnedPcrs) {
        match policy.vm_reference() {
            Some(reference) => check_pcrs(result, layer, reference),
            None => absent(result, "and the policy has no values to compare PCRs with"),
        }
    } else if transport.reaches_firmware() {
        // A launch ends with firmware, or with a kernel that starts others. What these started is in
        // the PCRs, and nothing here looks at them.
        absent(
            result,
            "and firmware measures into the TPM of this VM: [vm.without_log] has to demand \
             `pinned-pcrs`, with values in [vm.reference]",
        );
    }
}

fn absent(result: &mut LayerResult, why: &str) {
    result.contradict(
        Claim::Executables,
        "boot-log-absent",
        format!("the evidence has PCR values and no boot log, {why}"),
    );
}
