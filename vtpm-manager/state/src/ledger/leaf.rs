//! What the tree says of one vRoT: its generation and a digest of everything stored of it.

use std::collections::BTreeMap;

use cert_chain::{Digest32, Generation, VrotId};
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use sha2::{Digest, Sha256};

use crate::disk::Part;

/// A vRoT as of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    generation: Generation,
    parts: PartDigests,
}

/// The digest of each part of a vRoT of which anything is stored.
pub type PartDigests = BTreeMap<Part, Digest32>;

/// Version of the stored leaf, its first field; enters the tree with it.
const VERSION: u8 = 1;

/// Separates a leaf from every other thing hashed with the same first byte.
const LEAF_DOMAIN: &str = "vrot rollback leaf v1";

/// Separates a part's digest from a digest of the same bytes made elsewhere.
const PART_DOMAIN: &[u8] = b"vrot rollback part v1";

/// RFC 9162 §2.1.1: leaves and inner nodes are hashed with different first bytes.
const LEAF: u8 = 0x00;

impl Leaf {
    /// A vRoT of which nothing is stored yet.
    pub fn new(generation: Generation) -> Self {
        Self::over(generation, PartDigests::new())
    }

    /// A vRoT of which these parts are stored.
    pub fn over(generation: Generation, parts: PartDigests) -> Self {
        Self { generation, parts }
    }

    /// The same leaf with this part holding `contents`.
    #[must_use]
    pub fn with(mut self, part: Part, contents: &[u8]) -> Self {
        self.put(part, part_digest(part, contents));
        self
    }

    /// The generation that certificates and evidence of this vRoT carry.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The digest of one part; `None` where nothing of the kind is stored.
    pub fn part(&self, part: Part) -> Option<Digest32> {
        self.parts.get(&part).copied()
    }

    /// What enters the tree for `vrot`. The identifier is hashed too: nothing of one vRoT can
    /// stand for another.
    pub fn hash(&self, vrot: &VrotId) -> Digest32 {
        let mut encoder = Encoder::new(vec![LEAF]);
        // Infallible: a vector takes every byte.
        let _ = encoder
            .array(3)
            .and_then(|e| e.str(LEAF_DOMAIN))
            .and_then(|e| e.encode(vrot))
            .and_then(|e| e.encode(self));
        Digest32::of(encoder.writer())
    }

    /// Whether the vRoT exists: a deleted one of which something is still stored has no
    /// generation.
    pub(super) fn is_living(&self) -> bool {
        self.generation > Generation::default()
    }

    pub(super) fn put(&mut self, part: Part, digest: Digest32) {
        self.parts.insert(part, digest);
    }

    pub(super) fn remove(&mut self, part: Part) {
        self.parts.remove(&part);
    }

    pub(super) fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    pub(super) fn parts(&self) -> &PartDigests {
        &self.parts
    }
}

impl<C> Encode<C> for Leaf {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder
            .array(3)?
            .u8(VERSION)?
            .encode_with(self.generation, context)?
            .map(self.parts.len() as u64)?;
        for (part, digest) in &self.parts {
            encoder.u8(part.number())?.encode_with(digest, context)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Leaf {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        let wrong = |text: &'static str| DecodeError::message(text).at(position);
        if (decoder.array()?, decoder.u8()?) != (Some(3), VERSION) {
            return Err(wrong("no leaf of version 1"));
        }
        let mut leaf = Self::new(decoder.decode_with(context)?);
        let parts = decoder
            .map()?
            .ok_or_else(|| wrong("parts have a definite length"))?;
        for _ in 0..parts {
            let part = part_of(decoder.u8()?).ok_or_else(|| wrong("an unknown part"))?;
            if leaf.parts.keys().next_back() >= Some(&part) {
                return Err(wrong("parts come in order, each once"));
            }
            leaf.put(part, decoder.decode_with(context)?);
        }
        Ok(leaf)
    }
}

/// The digest that a leaf holds for `contents` as this part.
pub fn part_digest(part: Part, contents: &[u8]) -> Digest32 {
    let hash = Sha256::new()
        .chain_update(PART_DOMAIN)
        .chain_update([part.number()])
        .chain_update(contents);
    Digest32::new(hash.finalize().into())
}

fn part_of(number: u8) -> Option<Part> {
    Part::ALL.into_iter().find(|part| part.number() == number)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::ledger::tree::StateTree;

    fn leaf() -> Leaf {
        Leaf::new(Generation::new(7))
            .with(Part::Record, b"record")
            .with(Part::Permanent, b"state")
    }

    #[test]
    fn a_leaf_survives_the_store() {
        let bytes = minicbor::to_vec(leaf()).unwrap();
        assert_eq!(minicbor::decode::<Leaf>(&bytes).unwrap(), leaf());
    }

    /// Stores in the field hold leaves like this, and trees over them.
    #[test]
    fn version_one_stays_as_it_is() {
        assert_eq!(
            hex::encode(minicbor::to_vec(leaf()).unwrap()),
            include_str!("leaf_v1.hex").trim()
        );
        let vrots = [1, 2, 3].map(|byte| VrotId::from_uuid(uuid::Uuid::from_bytes([byte; 16])));
        assert_eq!(
            leaf().hash(&vrots[0]).to_string(),
            include_str!("leaf_hash_v1.hex").trim()
        );
        let tree: StateTree = (vrots.iter())
            .map(|vrot| (vrot, leaf().hash(vrot)))
            .collect();
        assert_eq!(
            tree.root().to_string(),
            include_str!("tree_root_v1.hex").trim()
        );
    }

    #[test]
    fn every_field_changes_the_hash() {
        let vrot = VrotId::random();
        let mut later = leaf();
        later.set_generation(Generation::new(8));
        let mut less = leaf();
        less.remove(Part::Permanent);
        let variants = [
            leaf().hash(&vrot),
            leaf().hash(&VrotId::random()),
            later.hash(&vrot),
            less.hash(&vrot),
            leaf().with(Part::Record, b"record2").hash(&vrot),
            leaf().with(Part::Volatile, b"").hash(&vrot),
        ];
        for (index, one) in variants.iter().enumerate() {
            assert!(!variants.iter().skip(index + 1).any(|other| other == one));
        }
    }

    #[test]
    fn equal_bytes_in_two_parts_have_two_digests() {
        assert_ne!(
            part_digest(Part::Permanent, b"x"),
            part_digest(Part::Volatile, b"x")
        );
    }

    #[test]
    fn parts_out_of_order_or_unknown_are_refused() {
        let digest = Digest32::of(b"");
        let encode = |parts: &[u8]| {
            let mut encoder = Encoder::new(Vec::new());
            encoder.array(3).unwrap().u8(VERSION).unwrap();
            encoder.u64(1).unwrap();
            encoder.map(parts.len() as u64).unwrap();
            for part in parts {
                encoder.u8(*part).unwrap().encode(digest).unwrap();
            }
            encoder.into_writer()
        };
        assert!(minicbor::decode::<Leaf>(&encode(&[1, 2])).is_ok());
        for wrong in [&[2, 1][..], &[1, 1], &[0], &[5]] {
            assert!(
                minicbor::decode::<Leaf>(&encode(wrong)).is_err(),
                "{wrong:?}"
            );
        }
    }
}
