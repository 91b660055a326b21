//! What the host's keys are bound to, beside the present state of the host.

use std::fmt;

use cert_chain::operator::PolicyKeyPublic;
use cert_chain::{Digest32, HashAlgorithm, HashValue, PcrValues};

/// What the host's keys are bound to.
#[derive(Clone, Debug)]
pub struct HostPolicy {
    /// The key whose approvals count.
    pub policy_key: PolicyKeyPublic,
    /// Digest of `PolicyAuthorize` for that key.
    pub policy_digest: Digest32,
    /// Present values of the PCRs under policy.
    pub current: PcrValues,
    /// What was approved, oldest first.
    pub approvals: Vec<ApprovalStatus>,
}

/// One approval beside the present state of the host.
#[derive(Clone, Debug)]
pub struct ApprovalStatus {
    /// What the note in it calls it. The signature does not cover the note.
    pub label: String,
    /// The PCR bank that it is of.
    pub bank: HashAlgorithm,
    /// Where the PCRs differ from it; nowhere, if it is in force.
    pub differences: Vec<PcrDifference>,
}

/// One PCR that has another value than approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrDifference {
    /// Which PCR.
    pub pcr: u8,
    /// Its value now.
    pub found: HashValue,
    /// The value in the approval; `None` where the approval does not cover the PCR in this bank.
    pub approved: Option<HashValue>,
}

impl HostPolicy {
    /// Whether an approval covers the present state.
    pub fn is_satisfied(&self) -> bool {
        self.approvals
            .iter()
            .any(|approval| approval.differences.is_empty())
    }
}

impl fmt::Display for PcrDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bank = self.found.algorithm();
        write!(f, "PCR {} ({bank}) is {}", self.pcr, self.found)?;
        match self.approved {
            Some(approved) => write!(f, ", approved is {approved}"),
            None => write!(f, ", which no approval covers"),
        }
    }
}
