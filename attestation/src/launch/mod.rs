//! What a host measured of a VM before it was started (ISO/IEC 27070 §6.3): the files and settings
//! that its launch hook named, each a [part](LaunchPart), and one digest over all of them.
//!
//! | file | what |
//! |---|---|
//! | `part.rs` | one part: its name and its value |
//! | `policy.rs` | what a policy accepts |

mod part;
mod policy;

use cert_chain::Digest32;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

pub use part::{LaunchPart, PartError, PartId, PartText, PartValue};
pub use policy::LaunchPolicy;

/// Whether a host measured a VM before its present start.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LaunchMeasurement {
    /// The launcher had nothing measured.
    #[n(0)]
    NotMeasured,
    /// What the launcher named was measured.
    #[n(1)]
    Measured(#[n(0)] Launch),
}

/// The measured parts of a launch, in the order of their names, and the digest over them.
///
/// The digest is the SHA-256 value of `["vrot launch v1", parts]` in deterministic CBOR, so it is the
/// same wherever the same parts have the same values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    digest: Digest32,
    parts: Vec<LaunchPart>,
}

/// Parts that make no launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// None, or too many.
    #[error("a launch has 1 to {MAX_PARTS} parts, not {found}")]
    Count {
        /// How many there are.
        found: usize,
    },
    /// Which of the two would count?
    #[error("the part `{part}` is given twice")]
    Twice {
        /// Which.
        part: PartId,
    },
}

/// Parts of one launch; a VM has firmware, kernel, a few settings, and some disks.
pub const MAX_PARTS: usize = 32;
/// What the digest is for.
const LABEL: &str = "vrot launch v1";

impl Launch {
    /// Of these parts, in whichever order they come.
    pub fn new(mut parts: Vec<LaunchPart>) -> Result<Self, LaunchError> {
        if !(1..=MAX_PARTS).contains(&parts.len()) {
            return Err(LaunchError::Count { found: parts.len() });
        }
        parts.sort_by(|one, other| one.id.cmp(&other.id));
        let twice = parts.windows(2).find_map(|pair| match pair {
            [one, other] if one.id == other.id => Some(one.id.clone()),
            _ => None,
        });
        match twice {
            Some(part) => Err(LaunchError::Twice { part }),
            None => Ok(Self {
                digest: digest_of(&parts),
                parts,
            }),
        }
    }

    /// The digest over all parts.
    pub fn digest(&self) -> &Digest32 {
        &self.digest
    }

    /// The parts in the order of their names.
    pub fn parts(&self) -> &[LaunchPart] {
        &self.parts
    }

    /// What was measured under this name.
    pub fn value(&self, id: &PartId) -> Option<&PartValue> {
        let part = self.parts.iter().find(|part| part.id == *id);
        part.map(|part| &part.value)
    }
}

fn digest_of(parts: &[LaunchPart]) -> Digest32 {
    match minicbor::to_vec((LABEL, parts)) {
        Ok(bytes) => Digest32::of(&bytes),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

impl<C> Encode<C> for Launch {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        (self.digest, &self.parts).encode(encoder, context)
    }
}

/// A digest that is not that of the parts, or parts in another order, are refused.
impl<'b, C> Decode<'b, C> for Launch {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        let refused = |what: String| DecodeError::message(what).at(position);
        let (digest, parts): (Digest32, Vec<LaunchPart>) = Decode::decode(decoder, context)?;
        let launch = Self::new(parts.clone()).map_err(|error| refused(error.to_string()))?;
        if launch.parts != parts {
            return Err(refused("the parts of a launch are not in order".to_owned()));
        }
        if launch.digest != digest {
            return Err(refused(
                "the digest of a launch is not that of its parts".to_owned(),
            ));
        }
        Ok(launch)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn part(id: &str, value: &str) -> LaunchPart {
        LaunchPart {
            id: id.parse().unwrap(),
            value: value.parse().unwrap(),
        }
    }

    fn kernel() -> LaunchPart {
        LaunchPart {
            id: "kernel".parse().unwrap(),
            value: PartValue::Digest(Digest32::of(b"kernel")),
        }
    }

    /// Test vector: others compute this digest, too, and policies hold it.
    #[test]
    fn the_digest_stays_as_it_is() {
        let launch = Launch::new(vec![
            part("machine", "pc-q35-7.2"),
            part("cpus", "2"),
            kernel(),
        ]);
        let launch = launch.unwrap();
        // 82                                      # array of 2
        //    6e 76726f74206c61756e6368207631      # "vrot launch v1"
        //    83                                   # array of 3
        //       82 64 63707573 61 32              # ["cpus", "2"]
        //       82 66 6b65726e656c 58 20 …        # ["kernel", SHA-256 value of "kernel"]
        //       82 67 6d616368696e65 6a …         # ["machine", "pc-q35-7.2"]
        let golden = [
            "826e76726f74206c61756e6368207631",
            "83",
            "8264637075736132",
            "82666b65726e656c5820",
            "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c",
            "82676d616368696e656a70632d7133352d372e32",
        ];
        let bytes = minicbor::to_vec((LABEL, launch.parts())).unwrap();
        assert_eq!(hex::encode(&bytes), golden.concat());
        assert_eq!(*launch.digest(), Digest32::of(&bytes));
    }

    #[test]
    fn the_order_in_which_parts_are_named_does_not_matter_and_their_values_do() {
        let one = Launch::new(vec![kernel(), part("cpus", "2")]).unwrap();
        let same = Launch::new(vec![part("cpus", "2"), kernel()]).unwrap();
        let other = Launch::new(vec![part("cpus", "4"), kernel()]).unwrap();
        assert_eq!(one, same);
        assert_ne!(one.digest(), other.digest());
        assert_ne!(one.digest(), Launch::new(vec![kernel()]).unwrap().digest());
    }

    #[test]
    fn no_part_is_given_twice_and_there_are_not_too_many() {
        let twice = Launch::new(vec![part("cpus", "2"), part("cpus", "4")]);
        assert!(matches!(twice, Err(LaunchError::Twice { .. })));
        assert_eq!(
            Launch::new(Vec::new()),
            Err(LaunchError::Count { found: 0 })
        );
        let many = (0..=MAX_PARTS).map(|n| part(&format!("disk:{n}"), "x"));
        let found = MAX_PARTS + 1;
        assert_eq!(
            Launch::new(many.collect()),
            Err(LaunchError::Count { found })
        );
    }

    #[test]
    fn a_launch_is_read_as_it_was_written_and_nothing_else_is_read() {
        let launch = Launch::new(vec![part("cpus", "2"), kernel()]).unwrap();
        let bytes = minicbor::to_vec(&launch).unwrap();
        assert_eq!(minicbor::decode::<Launch>(&bytes).unwrap(), launch);
        let read = |digest: Digest32, parts: &[LaunchPart]| {
            minicbor::decode::<Launch>(&minicbor::to_vec((digest, parts)).unwrap()).is_ok()
        };
        let (digest, parts) = (*launch.digest(), launch.parts().to_vec());
        assert!(read(digest, &parts));
        assert!(!read(Digest32::of(b"another"), &parts));
        let reversed: Vec<LaunchPart> = parts.iter().rev().cloned().collect();
        assert!(!read(digest_of(&reversed), &reversed));
        assert!(!read(digest_of(&[]), &[]));
    }
}
