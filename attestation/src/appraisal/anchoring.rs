//! Whether the vRoT's state can be an older one than was acknowledged.

use cert_chain::HostName;

use crate::host_leaf::{Anchoring, CutOff, HostLeaf, StateLoss};
use crate::policy::{Expectation, ExpectedAnchoring};
use crate::result::{Claim, LayerResult};

pub(super) fn check_anchoring(
    result: &mut LayerResult,
    host: &HostName,
    leaf: &HostLeaf,
    expect: &Expectation,
) {
    match (expect.anchor, leaf.anchoring) {
        (Some(ExpectedAnchoring::Strict), Anchoring::Checkpoint(seconds)) => result.contradict(
            Claim::Configuration,
            "anchor-not-strict",
            format!(
                "the host's TPM vouches for new state after {seconds} s at the latest; the policy \
                 asks for `strict`"
            ),
        ),
        (Some(ExpectedAnchoring::Strict), Anchoring::Strict) | (None, _) => {}
    }
    match leaf.cut_off {
        CutOff::Possible {
            batch,
            time,
            window_s,
        } if expect.power_losses_accepted.get(host) != Some(&batch) => result.warn(
            Claim::Configuration,
            "state-cut-off",
            format!(
                "a loss of power before batch {batch} of the host's store, made {time} s after \
                 1970 by the host's clock, may have cut off the last {window_s} s of the vRoT's \
                 state unseen; `power_losses_accepted` in the policy can name the batch"
            ),
        ),
        CutOff::Possible { .. } | CutOff::Excluded => {}
    }
    let accepted = expect.state_losses_accepted.get(&leaf.vrot);
    match leaf.state_loss {
        StateLoss::Possible { batch, time } if accepted != Some(&batch) => {
            result.warn(
                Claim::Configuration,
                "state-lost",
                format!(
                    "a backend of vRoT {} ended after it had answered commands whose state was not \
                     durable, and what they changed may be gone; noted after batch {batch} of the \
                     host's store, {time} s after 1970 by the host's clock; \
                     `state_losses_accepted` in the policy can name the batch",
                    leaf.vrot
                ),
            );
        }
        StateLoss::Possible { .. } | StateLoss::Excluded => {}
    }
}
