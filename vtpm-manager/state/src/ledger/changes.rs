//! What a batch changes, and what the store writes for it.

use std::collections::BTreeMap;

use cert_chain::{Digest32, Generation, VrotId};

use super::leaf::{Leaf, part_digest};
use crate::disk::{Batch, Part};

/// The changes of one batch, of as many vRoTs as had any.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    vrots: BTreeMap<VrotId, Change>,
    pub(super) of_ownership: bool,
}

/// What happens to one vRoT.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Delete,
    Put {
        generation: Option<Generation>,
        parts: BTreeMap<Part, Option<Digest32>>,
    },
}

impl From<&Batch> for Changes {
    fn from(batch: &Batch) -> Self {
        let mut changes = Self::default();
        if batch.changes_ownership() {
            changes.change_ownership();
        }
        for (vrot, part, contents) in batch.changes() {
            match (part, contents) {
                (Part::Record, None) => changes.delete(vrot),
                (Part::Record, Some(record)) => {
                    if let Some(generation) = batch.generation(vrot) {
                        changes.set_generation(vrot, generation);
                    }
                    changes.put(vrot, part, record);
                }
                (_, Some(contents)) => changes.put(vrot, part, contents),
                (_, None) => changes.remove(vrot, part),
            }
        }
        changes
    }
}

impl Changes {
    /// Gives a vRoT this generation; one that is not known yet comes into being.
    pub fn set_generation(&mut self, vrot: VrotId, to: Generation) {
        if let Change::Put { generation, .. } = self.of(vrot) {
            *generation = Some(to);
        }
    }

    /// Lets a part of a vRoT hold these contents.
    pub fn put(&mut self, vrot: VrotId, part: Part, contents: &[u8]) {
        if let Change::Put { parts, .. } = self.of(vrot) {
            parts.insert(part, Some(part_digest(part, contents)));
        }
    }

    /// Removes a part of a vRoT.
    pub fn remove(&mut self, vrot: VrotId, part: Part) {
        if let Change::Put { parts, .. } = self.of(vrot) {
            parts.insert(part, None);
        }
    }

    /// Deletes a vRoT. What the same batch wants of it before or afterwards is void: a deleted
    /// vRoT does not come back.
    pub fn delete(&mut self, vrot: VrotId) {
        self.vrots.insert(vrot, Change::Delete);
    }

    /// A vRoT becomes that of a VM. As with a new vRoT, the durable register follows soon.
    pub fn change_ownership(&mut self) {
        self.of_ownership = true;
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.vrots.is_empty()
    }

    fn of(&mut self, vrot: VrotId) -> &mut Change {
        self.vrots.entry(vrot).or_insert_with(|| Change::Put {
            generation: None,
            parts: BTreeMap::new(),
        })
    }

    /// The leaves as they are after the changes; `Err` names a vRoT that neither exists nor
    /// comes into being.
    pub(super) fn apply(
        &self,
        leaves: &BTreeMap<VrotId, Leaf>,
    ) -> Result<BTreeMap<VrotId, Option<Leaf>>, VrotId> {
        let mut after = BTreeMap::new();
        for (vrot, change) in &self.vrots {
            let leaf = match change {
                Change::Delete => None,
                Change::Put { generation, parts } => {
                    let mut leaf = match (leaves.get(vrot), generation) {
                        (Some(leaf), _) => leaf.clone(),
                        (None, Some(generation)) => Leaf::new(*generation),
                        // Removing what is not there is done already.
                        (None, None) if parts.values().all(Option::is_none) => continue,
                        (None, None) => return Err(*vrot),
                    };
                    if let Some(generation) = generation {
                        leaf.set_generation(*generation);
                    }
                    for (part, digest) in parts {
                        match digest {
                            Some(digest) => leaf.put(*part, *digest),
                            None => leaf.remove(*part),
                        }
                    }
                    Some(leaf)
                }
            };
            after.insert(*vrot, leaf);
        }
        Ok(after)
    }
}
