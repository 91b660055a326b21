//! Statements that the host makes of its own: about many vRoTs, under one quote.

use std::collections::VecDeque;
use std::sync::Arc;

use attestation::HostLeaf;
use attestation::merkle::Tree;
use cert_chain::Digest32;
use ring::rand::{SecureRandom, SystemRandom};
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
/// The size of every tree with such statements. How many requests of others share it does not show, nor
/// which are next to each other.
const TREE: usize = 2 * 4096;

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

/// A tree in which these hashes stand in any order among others that are random; where each stands.
pub(super) fn hidden_tree(hashes: &[Digest32]) -> Result<(Tree, Vec<usize>), HostEvidenceError> {
    let random = SystemRandom::new();
    let mut bytes = vec![0; TREE * 32];
    (random.fill(&mut bytes)).map_err(|_| HostEvidenceError::Random)?;
    let mut leaves: Vec<Digest32> = (bytes.as_chunks().0.iter())
        .map(|bytes| Digest32::new(*bytes))
        .collect();
    let mut places: Vec<usize> = (0..leaves.len().max(hashes.len())).collect();
    // Each in turn changes places with any that has none yet (Fisher and Yates).
    let mut draws = vec![0; hashes.len() * 8];
    (random.fill(&mut draws)).map_err(|_| HostEvidenceError::Random)?;
    for (turn, draw) in draws.as_chunks().0.iter().enumerate() {
        let left = places.len().saturating_sub(turn).max(1) as u64;
        let offset = usize::try_from(u64::from_le_bytes(*draw) % left).unwrap_or(0);
        places.swap(turn, turn + offset);
    }
    places.truncate(hashes.len());
    for (hash, place) in hashes.iter().zip(&places) {
        match leaves.get_mut(*place) {
            Some(leaf) => *leaf = *hash,
            None => return Err(HostEvidenceError::Busy),
        }
    }
    let tree = Tree::new(leaves).ok_or(HostEvidenceError::Busy)?;
    Ok((tree, places))
}

#[cfg(test)]
mod tests {
    use attestation::merkle::root_from_path;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_tree_of_few_statements_and_one_of_many_look_the_same() -> anyhow::Result<()> {
        let mut places_of_one = BTreeSet::new();
        for count in [1, 1, 1, 1, 3, MAX_STATEMENTS, TREE] {
            let hashes: Vec<Digest32> = (0..count)
                .map(|number| Digest32::of(&number.to_le_bytes()))
                .collect();
            let (tree, places) = hidden_tree(&hashes)?;
            assert_eq!(tree.size(), TREE as u64);
            let distinct: BTreeSet<usize> = places.iter().copied().collect();
            assert_eq!(distinct.len(), count);
            for (hash, place) in hashes.iter().zip(&places).take(9) {
                let path = tree.path(*place).unwrap_or_default();
                let root = root_from_path(*hash, *place as u64, tree.size(), &path)?;
                assert_eq!(root, tree.root());
            }
            if let [place] = places.as_slice() {
                places_of_one.insert(*place);
            }
        }
        assert!(places_of_one.len() > 1, "always in the same place");
        assert!(hidden_tree(&vec![Digest32::of(b"x"); TREE + 1]).is_err());
        Ok(())
    }
}
