//! What is stored of each vRoT, against what was committed of it.

use std::collections::{BTreeMap, BTreeSet};

use cert_chain::{Digest32, VrotId};

use super::leaf::{Leaf, PartDigests};
use super::refusal::Refusal;
use super::tree::StateTree;
use crate::disk::Part;

/// What the store holds, read and hashed, but not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// All chain records in the order of their numbers.
    pub chain: Vec<Vec<u8>>,
    /// All leaves.
    pub leaves: BTreeMap<VrotId, Vec<u8>>,
    /// The contents themselves, hashed anew. The generations that records state are not read: a
    /// record with the digest that was committed states the one that was committed with it.
    pub contents: BTreeMap<VrotId, PartDigests>,
}

/// The leaves that the newest batch was made over, if the list is readable.
pub(super) type Committed = (StateTree, BTreeMap<VrotId, Leaf>);

/// Everything that differs, sorted by how it came about.
#[derive(Debug, Default)]
pub(super) struct Differences {
    swapped: Vec<(VrotId, Part, VrotId)>,
    stale: Vec<(VrotId, Part)>,
    returned: Vec<(VrotId, Part)>,
    missing: Vec<(VrotId, Part)>,
}

/// The list of leaves and the tree over it; `None` where a leaf cannot be read. Whether it is
/// the right tree, the newest batch says.
pub(super) fn committed(stored: &Stored) -> Option<Committed> {
    let leaves: BTreeMap<VrotId, Leaf> = (stored.leaves.iter())
        .map(|(vrot, leaf)| Some((*vrot, minicbor::decode(leaf).ok()?)))
        .collect::<Option<_>>()?;
    let tree = (leaves.iter())
        .map(|(vrot, leaf)| (vrot, leaf.hash(vrot)))
        .collect();
    Some((tree, leaves))
}

impl Stored {
    pub(super) fn is_empty(&self) -> bool {
        self.chain.is_empty() && self.leaves.is_empty() && self.contents.is_empty()
    }
}

impl Differences {
    pub(super) fn between(
        committed: &BTreeMap<VrotId, Leaf>,
        found: &BTreeMap<VrotId, PartDigests>,
    ) -> Self {
        let mut differences = Self::default();
        let owners = owners(committed);
        let vrots: BTreeSet<&VrotId> = committed.keys().chain(found.keys()).collect();
        for vrot in vrots {
            let committed = committed.get(vrot).map(Leaf::parts);
            differences.compare(*vrot, committed, found.get(vrot), &owners);
        }
        differences
    }

    fn compare(
        &mut self,
        vrot: VrotId,
        committed: Option<&PartDigests>,
        found: Option<&PartDigests>,
        owners: &BTreeMap<(Part, Digest32), VrotId>,
    ) {
        for part in Part::ALL {
            let [expected, there] =
                [committed, found].map(|parts| parts.and_then(|parts| parts.get(&part)).copied());
            match (expected, there) {
                _ if expected == there => {}
                (_, Some(there)) if let Some(owner) = owners.get(&(part, there)) => {
                    self.swapped.push((vrot, part, *owner));
                }
                (Some(_), Some(_)) => self.stale.push((vrot, part)),
                (None, Some(_)) => self.returned.push((vrot, part)),
                (Some(_), None) => self.missing.push((vrot, part)),
                (None, None) => {}
            }
        }
    }

    /// Refuses what differs. A swap explains most, so it is named first; all else that differs
    /// is found again once it is put right.
    pub(super) fn refuse(self) -> Result<(), Refusal> {
        let Self {
            swapped,
            stale,
            returned,
            missing,
        } = self;
        if !swapped.is_empty() {
            return Err(Refusal::SwappedRecords { swapped });
        }
        if !stale.is_empty() {
            return Err(Refusal::StaleRecords { stale });
        }
        if !returned.is_empty() {
            return Err(Refusal::ReturnedRecords { returned });
        }
        if !missing.is_empty() {
            return Err(Refusal::MissingRecords { missing });
        }
        Ok(())
    }

    /// vRoTs of which anything differs.
    pub(super) fn vrots(&self) -> BTreeSet<VrotId> {
        let swapped = self.swapped.iter().map(|(vrot, ..)| *vrot);
        let others = [&self.stale, &self.returned, &self.missing];
        let others = others.into_iter().flatten().map(|(vrot, _)| *vrot);
        swapped.chain(others).collect()
    }
}

/// Whose every committed part is: a part found elsewhere was moved there.
fn owners(committed: &BTreeMap<VrotId, Leaf>) -> BTreeMap<(Part, Digest32), VrotId> {
    (committed.iter())
        .flat_map(|(vrot, leaf)| {
            leaf.parts()
                .iter()
                .map(|(part, digest)| ((*part, *digest), *vrot))
        })
        .collect()
}
