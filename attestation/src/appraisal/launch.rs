//! What a VM was launched as, and whether its firmware could measure.

use super::listing::list;
use crate::host_leaf::TpmTransport;
use crate::launch::{Launch, LaunchMeasurement, LaunchPolicy};
use crate::policy::FirmwareNotMeasured;
use crate::result::{Claim, LayerResult};

/// Compares what the host measured before the VM's start with what the policy accepts.
pub(super) fn check_launch(
    result: &mut LayerResult,
    measured: &LaunchMeasurement,
    policy: Option<&LaunchPolicy>,
) {
    let Some(policy) = policy else { return };
    match measured {
        LaunchMeasurement::Measured(launch) => check_measured(result, launch, policy),
        LaunchMeasurement::NotMeasured if policy.required => result.contradict(
            Claim::Configuration,
            "launch-not-measured",
            "the host did not measure the VM before it was started, and the policy asks for it"
                .to_owned(),
        ),
        LaunchMeasurement::NotMeasured => {}
    }
}

fn check_measured(result: &mut LayerResult, launch: &Launch, policy: &LaunchPolicy) {
    if policy.digests.contains(launch.digest()) {
        return result.approve(Claim::Configuration);
    }
    if policy.parts.is_empty() {
        if !policy.digests.is_empty() {
            result.contradict(
                Claim::Configuration,
                "launch-unexpected",
                format!(
                    "the VM was launched as {}; accepted: {}",
                    launch.digest(),
                    list(&policy.digests)
                ),
            );
        }
        return;
    }
    result.approve(Claim::Configuration);
    for (part, accepted) in &policy.parts {
        match launch.value(part) {
            Some(found) if accepted.contains(found) => {}
            Some(found) => {
                result.contradict_with(Claim::Configuration, "launch-part-unexpected", || {
                    format!("{part}: launched with {found}, accepted {}", list(accepted))
                })
            }
            None => result.contradict_with(Claim::Configuration, "launch-part-missing", || {
                format!("{part}: not measured, accepted {}", list(accepted))
            }),
        }
    }
    let unknown = (launch.parts().iter())
        .filter(|part| !policy.parts.contains_key(&part.id) && !policy.ignores(&part.id));
    for part in unknown {
        result.contradict_with(Claim::Configuration, "launch-part-unknown", || {
            format!(
                "{}: launched with {}, of which the policy does not speak: list its values in \
                 [launch.parts], or the part in `ignored_parts`",
                part.id, part.value
            )
        });
    }
}

/// A TPM that no firmware drives is silent about what ran before the kernel's driver.
pub(super) fn check_transport(
    result: &mut LayerResult,
    transport: TpmTransport,
    accepted: Option<FirmwareNotMeasured>,
) {
    match accepted {
        None if !transport.reaches_firmware() => result.contradict(
            Claim::Executables,
            "firmware-not-measured",
            format!(
                "the VM's TPM is attached by {}, which no firmware measures into: its PCRs say nothing \
                 of firmware, boot loader and kernel. A policy can accept that, in \
                 `firmware_not_measured`, and demand a measured launch",
                transport.name()
            ),
        ),
        None | Some(FirmwareNotMeasured::Accept) => {}
    }
}
