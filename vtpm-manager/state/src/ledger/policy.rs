//! When the durable register is written, and what a loss of power could therefore cut off.

use std::time::{Duration, Instant, SystemTime};

use super::interval::CheckpointInterval;
use super::registered_head::Leave;

/// When the durable register is written. The volatile one is written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnchorPolicy {
    /// With every batch, before it is acknowledged: a loss of power cuts off nothing that was
    /// acknowledged, and the TPM's flash wears.
    Strict,
    /// This long after the first change since the last time, sooner where vRoTs were made or
    /// given to VMs, with each batch by which a vRoT goes or gets a new generation, and at
    /// shutdown.
    Checkpoint(CheckpointInterval),
}

/// What a loss of power at this moment could cut off without anyone being able to tell. While
/// the TPM keeps its power it is nothing, whatever the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Batches of changes that the durable register does not cover.
    pub batches: u64,
    /// Age of the oldest of them.
    pub age: Option<Duration>,
    /// How old it may become by policy; older means that checkpoints fail.
    pub limit: Duration,
}

/// One moment on two clocks: one to write down, one to measure with.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The host's clock, which may jump: nothing is decided or ordered by it.
    pub wall: SystemTime,
    /// A clock that only goes forward.
    pub monotonic: Instant,
}

impl AnchorPolicy {
    /// How far the store may be ahead of the durable register under this policy.
    pub fn leave(self) -> Leave {
        match self {
            Self::Strict => Leave::OneBatch,
            Self::Checkpoint(interval) => Leave::Checkpoint(interval),
        }
    }

    /// What the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Checkpoint(_) => "checkpoint",
        }
    }

    /// The longest time of which changes can be cut off.
    pub fn limit(self) -> Duration {
        match self {
            Self::Strict => Duration::ZERO,
            Self::Checkpoint(interval) => interval.duration(),
        }
    }
}

impl Default for AnchorPolicy {
    fn default() -> Self {
        Self::Checkpoint(CheckpointInterval::DEFAULT)
    }
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            monotonic: Instant::now(),
        }
    }
}
