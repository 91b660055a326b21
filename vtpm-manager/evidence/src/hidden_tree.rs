//! The tree under a quote, which tells whoever has a leaf of it nothing of the others.
//!
//! It has a fixed size, and each leaf stands anywhere in it. Where nothing stands, nodes are random: salted
//! leaves and what is hashed of them cannot be told from that. Only nodes beside the way from a leaf to
//! the root are made, so a tree of few leaves costs little.

use std::collections::BTreeMap;
use std::mem;

use attestation::merkle::node_hash;
use cert_chain::Digest32;
use ring::rand::{SecureRandom, SystemRandom};

use crate::HostEvidenceError;

/// The steps from any leaf to the root.
const HEIGHT: usize = 13;
/// The size of every tree: as many as wait for a quote at the most, of guests and of the host's own. How
/// many requests share it does not show, nor which are next to each other.
const SIZE: usize = 1 << HEIGHT;

/// A Merkle tree (RFC 9162) with these leaves among random ones.
pub(crate) struct HiddenTree {
    /// From the leaves up, below the root: for each node on the way of a leaf, this and its sibling.
    levels: Vec<BTreeMap<usize, Digest32>>,
    root: Digest32,
    places: Vec<usize>,
}

impl HiddenTree {
    /// Refused are more than there is room for. Of none the root is random: it states nothing, as where
    /// no VM that was asked for could be quoted.
    pub(crate) fn new(hashes: &[Digest32]) -> Result<Self, HostEvidenceError> {
        let random = SystemRandom::new();
        let places = random_places(&random, hashes.len())?;
        let leaves = places.iter().copied().zip(hashes.iter().copied());
        let mut level: BTreeMap<usize, Digest32> = leaves.collect();
        let mut levels = Vec::with_capacity(HEIGHT);
        for _ in 0..HEIGHT {
            let siblings = level.keys().map(|place| place ^ 1);
            let open: Vec<usize> = siblings
                .filter(|place| !level.contains_key(place))
                .collect();
            let mut bytes = vec![0; open.len() * 32];
            (random.fill(&mut bytes)).map_err(|_| HostEvidenceError::Random)?;
            let nodes = bytes.as_chunks().0.iter().map(|node| Digest32::new(*node));
            level.extend(open.into_iter().zip(nodes));
            let nodes: Vec<_> = level.iter().collect();
            let pairs = nodes.as_chunks().0.iter();
            let above =
                pairs.map(|[(place, left), (_, right)]| (*place >> 1, node_hash(left, right)));
            let above = above.collect();
            levels.push(mem::replace(&mut level, above));
        }
        let root = match level.into_values().next() {
            Some(root) => root,
            None => {
                let mut bytes = [0; 32];
                (random.fill(&mut bytes)).map_err(|_| HostEvidenceError::Random)?;
                Digest32::new(bytes)
            }
        };
        Ok(Self {
            levels,
            root,
            places,
        })
    }

    /// Number of leaves.
    pub(crate) fn size(&self) -> u64 {
        SIZE as u64
    }

    /// What a quote signs.
    pub(crate) fn root(&self) -> Digest32 {
        self.root
    }

    /// Where each leaf stands, in the order in which they were given.
    pub(crate) fn places(&self) -> &[usize] {
        &self.places
    }

    /// Siblings on the way from the leaf at this place to the root, nearest first. There is none where no
    /// leaf of ours stands.
    pub(crate) fn path(&self, place: usize) -> Option<Vec<Digest32>> {
        let levels = self.levels.iter().enumerate();
        levels
            .map(|(height, level)| level.get(&((place >> height) ^ 1)).copied())
            .collect()
    }
}

/// So many places, each another.
fn random_places(random: &SystemRandom, count: usize) -> Result<Vec<usize>, HostEvidenceError> {
    if count > SIZE {
        return Err(HostEvidenceError::Busy);
    }
    let mut places: Vec<usize> = (0..SIZE).collect();
    let mut draws = vec![0; count * 8];
    (random.fill(&mut draws)).map_err(|_| HostEvidenceError::Random)?;
    // Each in turn changes places with any that has none yet (Fisher and Yates).
    for (turn, draw) in draws.as_chunks().0.iter().enumerate() {
        let left = SIZE.saturating_sub(turn).max(1) as u64;
        let offset = usize::try_from(u64::from_le_bytes(*draw) % left).unwrap_or(0);
        places.swap(turn, turn + offset);
    }
    places.truncate(count);
    Ok(places)
}

#[cfg(test)]
mod tests {
    use attestation::merkle::root_from_path;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_tree_of_few_statements_and_one_of_many_look_the_same() -> anyhow::Result<()> {
        let mut places_of_one = BTreeSet::new();
        let mut siblings = BTreeSet::new();
        for count in [1, 1, 1, 1, 2, 3, SIZE / 2, SIZE] {
            let hashes: Vec<Digest32> = (0..count)
                .map(|number| Digest32::of(&number.to_le_bytes()))
                .collect();
            let tree = HiddenTree::new(&hashes)?;
            let distinct: BTreeSet<usize> = tree.places().iter().copied().collect();
            assert_eq!(distinct.len(), count);
            for (hash, place) in hashes.iter().zip(tree.places()).take(9) {
                let path = tree.path(*place).unwrap_or_default();
                assert_eq!(path.len(), HEIGHT);
                let root = root_from_path(*hash, *place as u64, tree.size(), &path)?;
                assert_eq!(root, tree.root());
            }
            if let [place] = tree.places() {
                places_of_one.insert(*place);
                siblings.extend(tree.path(*place).unwrap_or_default());
            }
        }
        assert!(places_of_one.len() > 1, "always in the same place");
        assert_eq!(siblings.len(), 4 * HEIGHT, "a random node was used twice");
        Ok(())
    }

    #[test]
    fn a_tree_of_too_many_is_refused_and_one_of_none_states_nothing() -> anyhow::Result<()> {
        assert!(HiddenTree::new(&vec![Digest32::of(b"x"); SIZE + 1]).is_err());
        let (one, other) = (HiddenTree::new(&[])?, HiddenTree::new(&[])?);
        assert_ne!(one.root(), other.root());
        assert!(one.places().is_empty() && one.path(0).is_none());
        Ok(())
    }
}
