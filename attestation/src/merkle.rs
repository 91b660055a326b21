//! Merkle trees as in RFC 9162 §2.1: one host quote answers many requests, and each requester
//! gets a path of logarithmic length that says nothing about its neighbours.

use cert_chain::Digest32;
use sha2::{Digest, Sha256};

/// A tree over leaf hashes. It is never empty.
#[derive(Clone, Debug)]
pub struct Tree {
    /// From the leaves up to the root; a lone node at the end of a level moves up as it is.
    levels: Vec<Vec<Digest32>>,
}

/// A tree whose leaves come one after the other. It keeps a hash for each bit of their number, and so has no need to
/// hold them all.
#[derive(Clone, Debug, Default)]
pub struct GrowingTree {
    size: u64,
    /// Roots of the complete subtrees of which it is made so far, the largest first: as many as the size has bits
    /// that are set.
    peaks: Vec<Digest32>,
    followed: Option<Followed>,
}

/// The leaf whose path is wanted.
#[derive(Clone, Debug)]
struct Followed {
    /// Number of the leaf, from zero.
    index: u64,
    /// Which of the peaks it is below.
    peak: usize,
    path: Vec<Digest32>,
}

/// A tree that does not grow any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrownTree {
    /// Number of leaves; never 0.
    pub size: u64,
    /// `MTH` of RFC 9162 §2.1.1.
    pub root: Digest32,
    /// Number and path of the leaf that was followed.
    pub followed: Option<(u64, Vec<Digest32>)>,
}

/// Why a path does not lead from a leaf to a root.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// No such leaf.
    #[error("the tree has {tree_size} leaves, so there is no leaf {index}")]
    Index {
        /// Number of the leaf, from zero.
        index: u64,
        /// Number of leaves.
        tree_size: u64,
    },
    /// Too few or too many siblings.
    #[error("a path of {found} siblings does not fit leaf {index} of {tree_size}")]
    Length {
        /// Number of siblings given.
        found: usize,
        /// Number of the leaf, from zero.
        index: u64,
        /// Number of leaves.
        tree_size: u64,
    },
}

/// No path is longer: leaves are counted in 64 bits.
pub const MAX_PATH: usize = 64;

/// RFC 9162 §2.1.1: leaves and inner nodes are hashed with different first bytes.
const LEAF: u8 = 0x00;
const NODE: u8 = 0x01;

/// The hash of a leaf with these contents.
pub fn leaf_hash(leaf: &[u8]) -> Digest32 {
    let hash = Sha256::new().chain_update([LEAF]).chain_update(leaf);
    Digest32::new(hash.finalize().into())
}

impl Tree {
    /// A tree over these leaf hashes, or `None` if there are none.
    pub fn new(leaves: Vec<Digest32>) -> Option<Self> {
        if leaves.is_empty() {
            return None;
        }
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level
                .chunks(2)
                .map(|pair| match pair {
                    [left, right] => node_hash(left, right),
                    [lone] => *lone,
                    _ => unreachable!("chunks of two"),
                })
                .collect();
            levels.push(above);
        }
        Some(Self { levels })
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// `MTH` of RFC 9162 §2.1.1.
    pub fn root(&self) -> Digest32 {
        match self.levels.last().map(Vec::as_slice) {
            Some([root]) => *root,
            _ => unreachable!("the last level has one node"),
        }
    }

    /// The inclusion path of a leaf (RFC 9162 §2.1.3.1), nearest sibling first.
    pub fn path(&self, index: usize) -> Option<Vec<Digest32>> {
        self.levels.first()?.get(index)?;
        let mut position = index;
        let mut path = Vec::new();
        for level in &self.levels {
            if let Some(sibling) = level.get(position ^ 1) {
                path.push(*sibling);
            }
            position >>= 1;
        }
        Some(path)
    }
}

impl GrowingTree {
    /// Adds a leaf behind the others.
    pub fn push(&mut self, leaf: Digest32) {
        self.peaks.push(leaf);
        self.size = self.size.saturating_add(1);
        let mut merged = self.size;
        while merged & 1 == 0 && self.merge() {
            merged >>= 1;
        }
    }

    /// Adds a leaf behind the others and keeps its path, instead of that of an earlier one.
    pub fn push_followed(&mut self, leaf: Digest32) {
        self.followed = Some(Followed {
            index: self.size,
            peak: self.peaks.len(),
            path: Vec::new(),
        });
        self.push(leaf);
    }

    /// The tree over all leaves, or `None` if there are none.
    pub fn finish(mut self) -> Option<GrownTree> {
        while self.merge() {}
        let root = self.peaks.pop()?;
        Some(GrownTree {
            size: self.size,
            root,
            followed: (self.followed).map(|followed| (followed.index, followed.path)),
        })
    }

    /// Puts a node above the two smallest subtrees, if there are two.
    fn merge(&mut self) -> bool {
        let [.., left, right] = self.peaks.as_slice() else {
            return false;
        };
        let (left, right) = (*left, *right);
        self.peaks.truncate(self.peaks.len().saturating_sub(2));
        let place = self.peaks.len();
        if let Some(followed) = &mut self.followed {
            if followed.peak > place {
                followed.path.push(left);
                followed.peak = place;
            } else if followed.peak == place {
                followed.path.push(right);
            }
        }
        self.peaks.push(node_hash(&left, &right));
        true
    }
}

/// The root that a leaf hash and its path lead to (RFC 9162 §2.1.3.2). It says nothing until it
/// is compared with a root that somebody signed.
pub fn root_from_path(
    leaf: Digest32,
    index: u64,
    tree_size: u64,
    path: &[Digest32],
) -> Result<Digest32, PathError> {
    let wrong_length = PathError::Length {
        found: path.len(),
        index,
        tree_size,
    };
    if index >= tree_size {
        return Err(PathError::Index { index, tree_size });
    }
    let (mut position, mut last) = (index, tree_size - 1);
    let mut hash = leaf;
    for sibling in path {
        if last == 0 {
            return Err(wrong_length);
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    if last == 0 {
        Ok(hash)
    } else {
        Err(wrong_length)
    }
}

/// The node above these two.
pub fn node_hash(left: &Digest32, right: &Digest32) -> Digest32 {
    let hash = Sha256::new()
        .chain_update([NODE])
        .chain_update(left.as_bytes())
        .chain_update(right.as_bytes());
    Digest32::new(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

    use super::*;

    /// The inputs that the reference implementation of certificate transparency is tested with.
    fn known_leaves() -> Vec<Digest32> {
        [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ]
        .iter()
        .map(|text| leaf_hash(&hex::decode(text).unwrap()))
        .collect()
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        // Known from the test vectors of RFC 6962 implementations.
        let known = [
            (
                1,
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            ),
            (
                2,
                "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            ),
            (
                3,
                "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            ),
            (
                8,
                "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            ),
        ];
        for (size, root) in known {
            let tree = Tree::new(known_leaves()[..size].to_vec()).unwrap();
            assert_eq!(tree.root().to_string(), root, "{size} leaves");
        }
    }

    #[test]
    fn every_leaf_of_every_small_tree_has_a_path_to_its_root() {
        for size in 1..=33u64 {
            let leaves: Vec<_> = (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect();
            let tree = Tree::new(leaves.clone()).unwrap();
            assert_eq!(tree.size(), size);
            for (index, leaf) in (0..size).zip(&leaves) {
                let path = tree.path(usize::try_from(index).unwrap()).unwrap();
                assert_eq!(root_from_path(*leaf, index, size, &path), Ok(tree.root()));
            }
        }
    }

    #[test]
    fn another_index_size_or_path_does_not_lead_to_the_root() {
        let leaves: Vec<_> = (0..7u8).map(|i| leaf_hash(&[i])).collect();
        let tree = Tree::new(leaves.clone()).unwrap();
        let path = tree.path(2).unwrap();
        for index in (0..7).filter(|index| *index != 2) {
            assert_ne!(root_from_path(leaves[2], index, 7, &path), Ok(tree.root()));
        }
        assert_eq!(
            root_from_path(leaves[2], 7, 7, &path),
            Err(PathError::Index {
                index: 7,
                tree_size: 7
            })
        );
        assert!(root_from_path(leaves[2], 2, 7, &path[..2]).is_err());
        let longer = [path.as_slice(), &[leaves[0]]].concat();
        assert!(root_from_path(leaves[2], 2, 7, &longer).is_err());
        assert!(root_from_path(leaves[0], 0, u64::MAX, &[]).is_err());
    }

    #[test]
    fn a_tree_that_grew_has_the_same_root_and_paths() {
        for size in 1..=33usize {
            let leaves: Vec<_> = (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect();
            let tree = Tree::new(leaves.clone()).unwrap();
            for index in 0..size {
                let mut growing = GrowingTree::default();
                for (position, leaf) in leaves.iter().enumerate() {
                    match position == index {
                        true => growing.push_followed(*leaf),
                        false => growing.push(*leaf),
                    }
                }
                let expected = GrownTree {
                    size: tree.size(),
                    root: tree.root(),
                    followed: Some((index as u64, tree.path(index).unwrap())),
                };
                assert_eq!(growing.finish(), Some(expected));
            }
        }
    }

    #[test]
    fn a_tree_has_at_least_one_leaf() {
        assert_eq!(GrowingTree::default().finish(), None);
        assert!(Tree::new(Vec::new()).is_none());
    }
}
