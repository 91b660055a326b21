//! The rollback anchor: two registers of the physical TPM, and what they hold.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use cert_chain::Generation;
use ring::hmac;
use serde::Serialize;

use super::chain::{Epoch, Link};
use super::keys::RollbackKeys;

/// The two registers, as the physical TPM or a fake holds them.
///
/// A write that was answered is complete; a write that was not may have happened or not. One
/// that happened in part leaves contents that do not authenticate, which nothing accepts.
pub trait AnchorRegisters: fmt::Debug {
    /// What a register holds.
    fn read(&mut self, register: Register) -> Result<Reading, RegisterError>;

    /// Makes a register hold this. Only a defined register of this host can be written.
    fn write(&mut self, register: Register, contents: &Contents) -> Result<(), RegisterError>;

    /// Defines a register that is absent, and defines anew one that is not this host's: it is
    /// this host's and unwritten afterwards. Does nothing to one that is this host's. Only
    /// `host init` and an operator's recovery may come here.
    fn define(&mut self, register: Register) -> Result<(), RegisterError>;

    /// The newest generation that the TPM's counter has given out; zero before the first.
    fn generation(&mut self) -> Result<Generation, GenerationError>;

    /// A generation above `highest` that this TPM has never given out before, nor ever will
    /// again: whatever becomes of the registers or of the counter itself. Each call wears flash.
    fn new_generation(&mut self, highest: Generation) -> Result<Generation, GenerationError>;
}

/// The generation counter could not be used. The TPM may come back: nothing is decided by it.
#[derive(Debug, thiserror::Error)]
#[error("the TPM's generation counter could not be used: is the TPM there and unlocked?")]
pub struct GenerationError {
    /// What the TPM, or the way to it, said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// In the TPM's RAM: written with every batch, unwritten after a TPM reset.
    Volatile,
    /// In the TPM's flash: written at checkpoints and at shutdown, survives everything.
    Durable,
}

/// What was found in place of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The TPM has no such index.
    Absent,
    /// The index is there, but does not answer to this host's authorization value or is of
    /// another kind.
    Foreign,
    /// The index is this host's and was not written since it was defined or, if it is the
    /// volatile one, since the TPM's reset.
    Unwritten,
    /// What the index holds.
    Written(Contents),
}

/// The bytes in a register.
pub type Contents = [u8; CONTENTS];

/// Size of a register. NV space of a physical TPM is small, and 64 bytes fit everywhere.
pub const CONTENTS: usize = 64;

/// A register that could not be used. The TPM may come back: nothing is decided by it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {register} rollback register could not be {operation}: is the TPM there and unlocked?"
)]
pub struct RegisterError {
    /// Which register.
    pub register: Register,
    /// What was tried.
    pub operation: Operation,
    /// What the TPM, or the way to it, said.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// What was tried on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Defining it.
    Define,
    /// Reading it.
    Read,
    /// Writing it.
    Write,
}

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
pub struct Anchor {
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

/// Seconds between a change and the checkpoint that covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CheckpointInterval(u16);

const VERSION: u8 = 1;
const TAGGED: usize = 48;
const TAG: usize = CONTENTS - TAGGED;

/// What the first 48 bytes mean after version 1.
const CLOSED: u8 = 0;
const ONE_BATCH: u8 = 1;
const CHECKPOINT: u8 = 2;

impl Anchor {
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
            Leave::Checkpoint(CheckpointInterval(seconds)) => (CHECKPOINT, seconds),
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
            (VERSION, CHECKPOINT, seconds) => Leave::Checkpoint(CheckpointInterval(seconds)),
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

impl CheckpointInterval {
    /// Every ten minutes: 52,560 writes a year at most, nine years of a part that stands
    /// 500,000.
    pub const DEFAULT: Self = Self(600);

    /// An interval of 1 to 65,535 seconds (18 hours).
    pub fn from_secs(seconds: u64) -> Option<Self> {
        u16::try_from(seconds).ok().filter(|s| *s > 0).map(Self)
    }

    /// The interval in seconds.
    pub const fn seconds(self) -> u16 {
        self.0
    }

    /// The interval.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl Register {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Volatile, Self::Durable];
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volatile => "volatile",
            Self::Durable => "durable",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Define => "defined",
            Self::Read => "read",
            Self::Write => "written",
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

    use super::*;

    fn anchors() -> [Anchor; 3] {
        [
            Leave::Closed,
            Leave::OneBatch,
            Leave::Checkpoint(CheckpointInterval::DEFAULT),
        ]
        .map(|leave| Anchor {
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
            let open = |keys, register| Anchor::open(keys, register, &contents);
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
                assert_eq!(Anchor::open(&keys, Register::Volatile, &changed), None);
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

    #[test]
    fn an_interval_has_bounds() {
        assert_eq!(CheckpointInterval::from_secs(0), None);
        assert_eq!(CheckpointInterval::from_secs(65_536), None);
        let some = CheckpointInterval::from_secs(600);
        assert_eq!(some, Some(CheckpointInterval::DEFAULT));
    }
}
