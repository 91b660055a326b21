//! The contents of a register: which batch is the newest, and how far the store may be ahead of it.

use cert_chain::Generation;
use ring::hmac;

use super::chain::Link;
use super::interval::CheckpointInterval;
use super::keys::RollbackKeys;
use super::register::{CONTENTS, Contents, Register};
use crate::disk::Epoch;

/// What a register says: "the newest batch is this one".
///
/// ```text
/// offset size
///      0    1  version, 1
///      1    1  leave: 0 closed, 1 one batch, 2 any
///      2    2  leave "any": checkpoint interval in seconds, else 0
///      4    8  epoch
///     12    4  highest generation of any vRoT so far
///     16   32  link of the batch; it covers the tree's root
///     48   16  first half of HMAC-SHA-256(anchor key, register ‖ the 48 bytes before)
/// ```
/// Integers are big-endian. The tag names the register, so the contents of one do not pass as
/// those of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisteredHead {
    pub(super) epoch: Epoch,
    pub(super) link: Link,
    pub(super) highest: Generation,
    pub(super) leave: Leave,
}

/// How far the store may be ahead of the durable register when the volatile one was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Not at all: the manager had shut down.
    Closed,
    /// By one batch of changes: the durable register is written with each (`strict`).
    OneBatch,
    /// By any number of batches: the durable register is written at checkpoints, this long after
    /// the first change at the latest.
    Checkpoint(CheckpointInterval),
}

const VERSION: u8 = 1;
const TAGGED: usize = 48;
const TAG: usize = CONTENTS - TAGGED;

/// What the first 48 bytes mean after version 1.
const CLOSED: u8 = 0;
const ONE_BATCH: u8 = 1;
const CHECKPOINT: u8 = 2;

impl RegisteredHead {
    /// The number of the batch that the register names.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The link of that batch.
    pub fn link(&self) -> Link {
        self.link
    }

    /// How far the store may be ahead of it.
    pub fn leave(&self) -> Leave {
        self.leave
    }

    /// What to write into `register`.
    pub fn seal(&self, keys: &RollbackKeys, register: Register) -> Contents {
        let (leave, interval) = match self.leave {
            Leave::Closed => (CLOSED, 0),
            Leave::OneBatch => (ONE_BATCH, 0),
            Leave::Checkpoint(interval) => (CHECKPOINT, interval.seconds()),
        };
        // A generation beyond 32 bits cannot come about: each rise is a step of a counter in
        // flash, and flash ends long before.
        let highest = u32::try_from(self.highest.number()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(CONTENTS);
        bytes.extend([VERSION, leave]);
        bytes.extend(interval.to_be_bytes());
        bytes.extend(self.epoch.number().to_be_bytes());
        bytes.extend(highest.to_be_bytes());
        bytes.extend(self.link.as_bytes());
        bytes.extend(tag(keys, register, &bytes));
        let mut contents = [0; CONTENTS];
        contents.copy_from_slice(&bytes);
        contents
    }

    /// Reads a register's contents; `None` where this host did not write them there.
    pub fn open(keys: &RollbackKeys, register: Register, contents: &Contents) -> Option<Self> {
        let (tagged, found) = contents.split_at(TAGGED);
        // Over all bytes, so that the time taken does not say how many were right.
        let expected = tag(keys, register, tagged);
        let differing = expected
            .iter()
            .zip(found)
            .fold(0, |bits, (a, b)| bits | (a ^ b));
        if differing != 0 {
            return None;
        }
        let (&[version, leave], rest) = tagged.split_first_chunk()?;
        let (interval, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (highest, link) = rest.split_first_chunk()?;
        let interval = u16::from_be_bytes(*interval);
        let leave = match (version, leave, interval) {
            (VERSION, CLOSED, 0) => Leave::Closed,
            (VERSION, ONE_BATCH, 0) => Leave::OneBatch,
            (VERSION, CHECKPOINT, seconds) => {
                Leave::Checkpoint(CheckpointInterval::from_secs(seconds.into())?)
            }
            _ => return None,
        };
        Some(Self {
            epoch: Epoch::new(u64::from_be_bytes(*epoch)),
            link: Link::new(link.try_into().ok()?),
            highest: Generation::new(u64::from(u32::from_be_bytes(*highest))),
            leave,
        })
    }
}

fn tag(keys: &RollbackKeys, register: Register, tagged: &[u8]) -> [u8; TAG] {
    let mut context = hmac::Context::with_key(keys.anchor());
    context.update(&[match register {
        Register::Volatile => 0,
        Register::Durable => 1,
    }]);
    context.update(tagged);
    let whole = context.sign();
    let mut tag = [0; TAG];
    tag.iter_mut()
        .zip(whole.as_ref())
        .for_each(|(to, from)| *to = *from);
    tag
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn anchors() -> [RegisteredHead; 3] {
        [
            Leave::Closed,
            Leave::OneBatch,
            Leave::Checkpoint(CheckpointInterval::from_secs(600).unwrap()),
        ]
        .map(|leave| RegisteredHead {
            epoch: Epoch::new(0x0102_0304_0506_0708),
            link: Link::new([9; 32]),
            highest: Generation::new(42),
            leave,
        })
    }

    #[test]
    fn an_anchor_survives_its_register_and_no_other() {
        let keys = RollbackKeys::derive(&[7; 32]);
        let other = RollbackKeys::derive(&[8; 32]);
        for anchor in anchors() {
            let contents = anchor.seal(&keys, Register::Durable);
            let open = |keys, register| RegisteredHead::open(keys, register, &contents);
            assert_eq!(open(&keys, Register::Durable), Some(anchor));
            assert_eq!(open(&keys, Register::Volatile), None);
            assert_eq!(open(&other, Register::Durable), None);
        }
    }

    #[test]
    fn no_bit_of_an_anchor_can_change() {
        let keys = RollbackKeys::derive(&[7; 32]);
        for anchor in anchors() {
            let contents = anchor.seal(&keys, Register::Volatile);
            for bit in 0..CONTENTS * 8 {
                let mut changed = contents;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(
                    RegisteredHead::open(&keys, Register::Volatile, &changed),
                    None
                );
            }
        }
    }

    /// Registers in the field hold contents like these.
    #[test]
    fn version_one_stays_readable() {
        let keys = RollbackKeys::derive(&[7; 32]);
        let contents = anchors()[2].seal(&keys, Register::Durable);
        assert_eq!(
            hex::encode(contents),
            include_str!("register_v1.hex").trim()
        );
    }
}
