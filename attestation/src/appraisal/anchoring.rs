//! Whether the vRoT's state can be an older one than was acknowledged.

use crate::host_leaf::{Anchoring, CutOff, HostLeaf};
use crate::policy::{Expectation, ExpectedAnchoring};
use crate::result::{Claim, LayerResult};

pub(super) fn check_anchoring(result: &mut LayerResult, leaf: &HostLeaf, expect: &Expectation) {
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
        } if time > expect.power_losses_accepted_until => result.warn(
            Claim::Configuration,
            "state-cut-off",
            format!(
                "a loss of power before batch {batch} of the host's store, made {time} s after \
                 1970, may have cut off the last {window_s} s of the vRoT's state unseen"
            ),
        ),
        CutOff::Possible { .. } | CutOff::Excluded => {}
    }
}
