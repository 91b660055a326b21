//! The ledger's position, for metrics and for what verifiers are told.

use std::time::Duration;

use super::chain::{PowerLoss, UnixSeconds};
use super::log_mark::LogMark;
use super::policy::{AnchorPolicy, Moment, Window};
use super::register::AnchorRegisters;
use super::running::Ledger;
use crate::disk::Epoch;

/// The newest batch, and what a loss of power could cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollbackStatus {
    /// The newest batch.
    pub epoch: Epoch,
    /// When it was made.
    pub time: UnixSeconds,
    /// The policy in force.
    pub policy: AnchorPolicy,
    /// What a loss of power could cut off now.
    pub window: Window,
    /// The last start before which batches may have been cut off.
    pub power_loss: Option<PowerLoss>,
    /// What it says of the log beside the store.
    pub log: Option<LogMark>,
}

impl<R: AnchorRegisters> Ledger<R> {
    /// How it stands.
    pub fn status(&self, now: Moment) -> RollbackStatus {
        RollbackStatus {
            epoch: self.head().epoch(),
            time: self.head().time(),
            policy: self.policy(),
            window: self.window(now),
            power_loss: self.head().power_loss(),
            log: self.head().log(),
        }
    }
}

impl RollbackStatus {
    /// Age of the oldest change that a loss of power could cut off now.
    pub fn exposure(&self) -> Duration {
        self.window.age.unwrap_or_default()
    }
}
