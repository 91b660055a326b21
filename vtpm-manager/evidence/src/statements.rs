//! Statements that the host makes of its own: about many vRoTs, under one quote.

use std::collections::VecDeque;
use std::sync::Arc;

use attestation::HostLeaf;
use cert_chain::Digest32;
use tokio::sync::oneshot;

use crate::HostEvidenceError;

/// What stands under a quote of the host, for statements that were made together.
#[derive(Clone, Debug)]
pub struct SignedStatements {
    /// `TPMS_ATTEST` of the quote.
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE` by the host IK.
    pub signature: Vec<u8>,
    /// `TPMT_PUBLIC` of the host IK.
    pub host_ik_public: Vec<u8>,
    /// The host's event log.
    pub event_log: Arc<[u8]>,
    /// Its SHA-256 value.
    pub event_log_digest: Digest32,
    /// Root of the tree that the quote signs.
    pub root: Digest32,
    /// Number of its leaves.
    pub tree_size: u64,
    /// The values of the quoted PCRs in rising order.
    pub pcr_values: Vec<u8>,
    /// Each statement's place, in the order in which they were given.
    pub places: Vec<Place>,
}

/// Where a statement stands in the tree.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its number, from zero.
    pub index: u64,
    /// Siblings on the way to the root, nearest first.
    pub path: Vec<Digest32>,
}

/// Statements that wait for a quote together.
pub(super) struct Group {
    pub(super) leaves: Vec<HostLeaf>,
    pub(super) answer: oneshot::Sender<Result<SignedStatements, HostEvidenceError>>,
}

/// Groups that wait.
const MAX_WAITING: usize = 64;
/// Statements of groups under one quote.
pub(super) const MAX_STATEMENTS: usize = 4096;

/// Groups in the order in which they came.
#[derive(Default)]
pub(super) struct Groups(VecDeque<Group>);

impl Groups {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a group up, or says that too many wait.
    pub(super) fn push(&mut self, group: Group) {
        if self.0.len() < MAX_WAITING {
            return self.0.push_back(group);
        }
        // Who asked may be gone.
        let _ = group.answer.send(Err(HostEvidenceError::Busy));
    }

    /// Those that come under the next quote: as many as fit.
    pub(super) fn take(&mut self) -> Vec<Group> {
        let mut taken = Vec::new();
        let mut statements = 0;
        while let Some(next) = self.0.front() {
            statements += next.leaves.len();
            if statements > MAX_STATEMENTS {
                break;
            }
            taken.extend(self.0.pop_front());
        }
        taken
    }
}
