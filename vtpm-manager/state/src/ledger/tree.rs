//! The Merkle tree over all vRoTs of a host.
//!
//! A binary trie over SHA-256 of the vRoT identifier: the path of a leaf depends on its
//! identifier alone, so the tree over a set of leaves has one shape and one root, whatever the
//! order in which they came. A subtree with one leaf *is* that leaf, so the tree is about log₂ n
//! deep, and a change costs as many hashes. What is not stored is not in the tree: a record that
//! is put back changes the root.

use std::sync::Arc;

use cert_chain::{Digest32, VrotId};
use sha2::{Digest, Sha256};

/// A tree; cloning it costs nothing, changing it copies one path.
#[derive(Clone, Debug, Default)]
pub struct StateTree {
    top: Node,
}

#[derive(Clone, Debug, Default)]
enum Node {
    #[default]
    Empty,
    Leaf {
        path: Path,
        hash: Digest32,
    },
    Inner(Arc<Inner>),
}

#[derive(Debug)]
struct Inner {
    hash: Digest32,
    zero: Node,
    one: Node,
}

/// Where a vRoT stands. Hashed, so that chosen identifiers do not make a deep tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path([u8; 32]);

/// First bytes of what is hashed; leaves are hashed with 0x00 (RFC 9162 §2.1.1).
const INNER: u8 = 0x01;
const EMPTY: u8 = 0x02;

const PATH_DOMAIN: &[u8] = b"vrot rollback path v1";
const INNER_DOMAIN: &[u8] = b"vrot rollback node v1";
const EMPTY_DOMAIN: &[u8] = b"vrot rollback none v1";

impl StateTree {
    /// The hash over all leaves.
    pub fn root(&self) -> Digest32 {
        self.top.hash()
    }

    /// The tree in which this leaf stands for `vrot`.
    #[must_use]
    pub fn with(&self, vrot: &VrotId, leaf: Digest32) -> Self {
        let top = self.top.with(Path::of(vrot), leaf, 0);
        Self { top }
    }

    /// The tree without `vrot`.
    #[must_use]
    pub fn without(&self, vrot: &VrotId) -> Self {
        let top = self.top.without(Path::of(vrot), 0);
        Self { top }
    }
}

impl<'a> FromIterator<(&'a VrotId, Digest32)> for StateTree {
    fn from_iter<I: IntoIterator<Item = (&'a VrotId, Digest32)>>(leaves: I) -> Self {
        leaves
            .into_iter()
            .fold(Self::default(), |tree, (vrot, leaf)| tree.with(vrot, leaf))
    }
}

impl Node {
    fn hash(&self) -> Digest32 {
        match self {
            Self::Empty => {
                let hash = Sha256::new()
                    .chain_update([EMPTY])
                    .chain_update(EMPTY_DOMAIN);
                Digest32::new(hash.finalize().into())
            }
            Self::Leaf { hash, .. } => *hash,
            Self::Inner(inner) => inner.hash,
        }
    }

    fn with(&self, path: Path, hash: Digest32, depth: u8) -> Self {
        match self {
            Self::Empty => Self::Leaf { path, hash },
            Self::Leaf { path: there, .. } if *there == path => Self::Leaf { path, hash },
            Self::Leaf { path: there, .. } => {
                // Two paths of 256 bits that are not equal part before the last bit is used up.
                let below = if there.turns_to_one(depth) {
                    Self::inner(Self::Empty, self.clone())
                } else {
                    Self::inner(self.clone(), Self::Empty)
                };
                below.with(path, hash, depth)
            }
            Self::Inner(inner) if path.turns_to_one(depth) => {
                let one = inner.one.with(path, hash, depth.saturating_add(1));
                Self::inner(inner.zero.clone(), one)
            }
            Self::Inner(inner) => {
                let zero = inner.zero.with(path, hash, depth.saturating_add(1));
                Self::inner(zero, inner.one.clone())
            }
        }
    }

    fn without(&self, path: Path, depth: u8) -> Self {
        match self {
            Self::Leaf { path: there, .. } if *there == path => Self::Empty,
            Self::Empty | Self::Leaf { .. } => self.clone(),
            Self::Inner(inner) => {
                let (zero, one) = if path.turns_to_one(depth) {
                    let one = inner.one.without(path, depth.saturating_add(1));
                    (inner.zero.clone(), one)
                } else {
                    let zero = inner.zero.without(path, depth.saturating_add(1));
                    (zero, inner.one.clone())
                };
                match (zero, one) {
                    (Self::Empty, Self::Empty) => Self::Empty,
                    // A lone leaf moves up, or the shape would tell of the past.
                    (leaf @ Self::Leaf { .. }, Self::Empty)
                    | (Self::Empty, leaf @ Self::Leaf { .. }) => leaf,
                    (zero, one) => Self::inner(zero, one),
                }
            }
        }
    }

    fn inner(zero: Self, one: Self) -> Self {
        let hash = Sha256::new()
            .chain_update([INNER])
            .chain_update(INNER_DOMAIN)
            .chain_update(zero.hash().as_bytes())
            .chain_update(one.hash().as_bytes());
        Self::Inner(Arc::new(Inner {
            hash: Digest32::new(hash.finalize().into()),
            zero,
            one,
        }))
    }
}

impl Path {
    fn of(vrot: &VrotId) -> Self {
        let hash = Sha256::new()
            .chain_update(PATH_DOMAIN)
            .chain_update(vrot.as_bytes());
        Self(hash.finalize().into())
    }

    /// Bit `depth`, counted from the most significant bit of the first byte.
    fn turns_to_one(&self, depth: u8) -> bool {
        let byte = self.0.get(usize::from(depth / 8)).copied().unwrap_or(0);
        byte & (0x80 >> (depth % 8)) != 0
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

    use super::*;

    /// Leaves of so many vRoTs: others for another seed.
    fn leaves(seed: u8, count: u32) -> Vec<(VrotId, Digest32)> {
        (0..count)
            .map(|number| {
                let leaf = Digest32::of(&[&[seed], number.to_be_bytes().as_slice()].concat());
                (vrot(leaf), leaf)
            })
            .collect()
    }

    fn vrot(from: Digest32) -> VrotId {
        let mut id = [0; 16];
        id.copy_from_slice(&from.as_bytes()[..16]);
        VrotId::from_uuid(uuid::Builder::from_random_bytes(id).into_uuid())
    }

    fn tree(leaves: &[(VrotId, Digest32)]) -> StateTree {
        leaves.iter().map(|(vrot, leaf)| (vrot, *leaf)).collect()
    }

    fn depth(node: &Node) -> usize {
        match node {
            Node::Inner(inner) => 1 + depth(&inner.zero).max(depth(&inner.one)),
            _ => 0,
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_show() {
        let mut leaves = leaves(1, 200);
        let forward = tree(&leaves).root();
        leaves.reverse();
        assert_eq!(tree(&leaves).root(), forward);
    }

    #[test]
    fn what_was_removed_or_overwritten_leaves_no_trace() {
        let leaves = leaves(2, 300);
        let mut all = tree(&leaves);
        for (vrot, _) in &leaves[100..] {
            all = all.with(vrot, Digest32::of(b"something else"));
        }
        for (vrot, _) in &leaves[100..] {
            all = all.without(vrot);
        }
        assert_eq!(all.root(), tree(&leaves[..100]).root());
        for (vrot, _) in &leaves[..100] {
            all = all.without(vrot);
        }
        assert_eq!(all.root(), StateTree::default().root());
    }

    #[test]
    fn every_leaf_and_every_absence_counts() {
        let leaves = leaves(3, 64);
        let whole = tree(&leaves);
        let absent = vrot(Digest32::of(b"absent"));
        assert_eq!(whole.without(&absent).root(), whole.root());
        assert_ne!(whole.with(&absent, leaves[0].1).root(), whole.root());
        for (vrot, leaf) in &leaves {
            assert_ne!(whole.without(vrot).root(), whole.root());
            assert_ne!(whole.with(vrot, Digest32::of(b"x")).root(), whole.root());
            assert_eq!(whole.with(vrot, *leaf).root(), whole.root());
        }
    }

    #[test]
    fn leaves_in_each_others_place_make_another_root() {
        let leaves = leaves(4, 2);
        let swapped = [(leaves[0].0, leaves[1].1), (leaves[1].0, leaves[0].1)];
        assert_ne!(tree(&leaves).root(), tree(&swapped).root());
    }

    #[test]
    fn a_thousand_leaves_make_a_shallow_tree() {
        let tree = tree(&leaves(5, 1000));
        let depth = depth(&tree.top);
        assert!((10..=32).contains(&depth), "{depth}");
    }

    #[test]
    fn an_older_tree_is_not_touched_by_a_newer_one() {
        let leaves = leaves(6, 50);
        let older = tree(&leaves);
        let root = older.root();
        let newer = leaves
            .iter()
            .fold(older.clone(), |tree, (vrot, _)| tree.without(vrot));
        assert_eq!(older.root(), root);
        assert_ne!(newer.root(), root);
    }
}
