//! What is not as it was when a connection was last attested.
//!
//! Each appraisal judges for itself. That a host was reset between two of them, only the two together
//! show.

use std::fmt;

use attestation::{AttestationResult, CutOff, Durability, Layer, StateLoss, Verdict};
use cert_chain::Generation;

/// A difference between two appraisals of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The verdict.
    Verdict(Verdict, Verdict),
    /// The host's TPM was reset or restarted.
    HostReset,
    /// The VM's TPM was reset or restarted.
    VmReset,
    /// The vRoT has another generation: its state was restored with sanction.
    Generation(Generation, Generation),
    /// The vRoT's state is not durable for the time being.
    Degraded,
    /// The vRoT's state is durable again.
    Durable,
    /// A loss of power may have cut off state of the vRoT.
    CutOff,
    /// The vRoT may have lost state with its backend.
    StateLoss,
    /// The VM was started anew, or what its host says of that start has changed.
    Launch,
}

/// How the later of two results of one service differs.
pub fn changes(before: &AttestationResult, after: &AttestationResult) -> Vec<Change> {
    let (was, is) = (before.evidence(), after.evidence());
    let clock = |result: &AttestationResult, layer| result.evidence().layer(layer).clock();
    let boot_cycle = |result: &AttestationResult| {
        clock(result, Layer::Host).boot_cycle(&result.evidence().chain().host_claims().ik)
    };
    let resets = |result: &AttestationResult| {
        let clock = clock(result, Layer::Vm);
        (clock.reset_count, clock.restart_count)
    };
    let (old, new) = (was.leaf(), is.leaf());
    let mut changes = Vec::new();
    if before.verdict() != after.verdict() {
        changes.push(Change::Verdict(before.verdict(), after.verdict()));
    }
    if boot_cycle(before) != boot_cycle(after) {
        changes.push(Change::HostReset);
    }
    if resets(before) != resets(after) {
        changes.push(Change::VmReset);
    }
    if old.generation != new.generation {
        changes.push(Change::Generation(old.generation, new.generation));
    }
    match (old.durability, new.durability) {
        (Durability::Durable, Durability::Degraded) => changes.push(Change::Degraded),
        (Durability::Degraded, Durability::Durable) => changes.push(Change::Durable),
        _ => {}
    }
    if old.cut_off != new.cut_off && new.cut_off != CutOff::Excluded {
        changes.push(Change::CutOff);
    }
    if old.state_loss != new.state_loss && new.state_loss != StateLoss::Excluded {
        changes.push(Change::StateLoss);
    }
    if old.launch != new.launch {
        changes.push(Change::Launch);
    }
    changes
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(before, after) => {
                write!(f, "the verdict is {after}, and was {before}")
            }
            Self::HostReset => f.write_str("the host's TPM was reset or restarted"),
            Self::VmReset => f.write_str("the VM's TPM was reset or restarted"),
            Self::Generation(before, after) => write!(
                f,
                "the vRoT is of generation {after}, and was of generation {before}"
            ),
            Self::Degraded => f.write_str("the vRoT's state is not durable for the time being"),
            Self::Durable => f.write_str("the vRoT's state is durable again"),
            Self::CutOff => {
                f.write_str("a loss of power may have cut off the newest state of the vRoT")
            }
            Self::StateLoss => f.write_str("the vRoT may have lost state with its backend"),
            Self::Launch => f.write_str("the VM is launched otherwise than it was"),
        }
    }
}
