//! What follows a decision that was no refusal.

use std::collections::BTreeMap;

use cert_chain::{Generation, VrotId};
use serde::Serialize;

use super::chain::{ChainRecord, ChainRecordFields, Kind, Link, PowerLoss, Salt, UnixSeconds};
use super::changes::Changes;
use super::interval::CheckpointInterval;
use super::keys::RollbackKeys;
use super::leaf::Leaf;
use super::policy::{AnchorPolicy, Moment};
use super::register::{AnchorRegisters, GenerationError, Register, RegisterError};
use super::registered_head::RegisteredHead;
use super::running::{CommitError, Ledger, Uncovered};
use super::tree::StateTree;
use crate::disk::{Epoch, LedgerWrites};

/// A store that the anchor vouches for. Only [`super::decide`] makes it.
#[derive(Debug)]
pub struct Start {
    pub(super) keys: RollbackKeys,
    pub(super) head: ChainRecord,
    pub(super) volatile: Option<Link>,
    pub(super) durable: Option<RegisteredHead>,
    pub(super) floor: Epoch,
    pub(super) changes_uncovered: usize,
    pub(super) tree: StateTree,
    pub(super) leaves: BTreeMap<VrotId, Leaf>,
    pub(super) boot: Boot,
    pub(super) recovered: Option<Recovered>,
}

/// How the host came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// The TPM was not reset since the manager ran last: nothing can have been cut off.
    Continued,
    /// The manager had shut down before the TPM was reset: nothing can have been cut off.
    AfterShutdown,
    /// The TPM was reset without that. Under the checkpoint policy, changes younger than the
    /// interval may have been cut off; under `strict` nothing that was acknowledged.
    AfterPowerLoss {
        /// The interval in force then; `None` under `strict`.
        cut_off: Option<CheckpointInterval>,
    },
    /// The host was being set up or recovered.
    Unfinished,
}

/// A recovery that is still in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The batch that it is.
    pub batch: Epoch,
    /// The generation that it gave out.
    pub generation: Generation,
}

/// A host on which there was neither store nor anchor. Only [`super::decide`] makes it, and only
/// `host init` may use it.
#[derive(Debug)]
pub struct FirstStart {
    keys: RollbackKeys,
}

/// Why nothing was set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirstStartError<E> {
    /// The generation counter.
    #[error(transparent)]
    Generation(GenerationError),
    /// A register.
    #[error(transparent)]
    Register(RegisterError),
    /// The store.
    #[error("the store did not take its first batch")]
    Store(#[source] E),
}

impl Boot {
    /// Its name for people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Continued => "continued",
            Self::AfterShutdown => "after-shutdown",
            Self::AfterPowerLoss { .. } => "after-power-loss",
            Self::Unfinished => "unfinished",
        }
    }
}

impl Start {
    /// How the host came up, and what may have been cut off.
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// The newest recovery, if it is still in the chain: it was not long ago, and may be
    /// unrecorded.
    pub fn recovered(&self) -> Option<Recovered> {
        self.recovered
    }

    /// The newest batch.
    pub fn head(&self) -> &ChainRecord {
        &self.head
    }

    /// Brings the anchor up to the store. After a TPM reset this commits a batch of its own and
    /// writes both registers: from then on, what another store made of the same past is
    /// another branch.
    ///
    /// What an earlier manager left uncovered is covered here, at the price of one flash write
    /// for a manager that was killed: how old it is, only a clock could say that can be put
    /// back, and managers that die one after the other must not keep the window open.
    pub fn begin<R: AnchorRegisters, E>(
        self,
        registers: R,
        policy: AnchorPolicy,
        now: Moment,
        store: impl FnOnce(&LedgerWrites) -> Result<(), E>,
    ) -> Result<Ledger<R>, CommitError<E>> {
        let epoch = self.head.epoch();
        let mut ledger = Ledger {
            keys: self.keys,
            registers,
            policy,
            log: self.head.log(),
            head: self.head,
            tree: self.tree,
            leaves: self.leaves,
            volatile: self.volatile,
            durable: self.durable,
            floor: self.floor,
            uncovered: Uncovered {
                batches: u64::try_from(self.changes_uncovered).unwrap_or(u64::MAX),
                since: (self.changes_uncovered > 0).then_some(now.monotonic),
                set_since: None,
            },
        };
        if ledger.volatile.is_none() {
            let power_loss = power_loss(self.boot, &ledger.head, now);
            ledger.append(Kind::Start, power_loss, &Changes::default(), now, store)?;
        } else {
            ledger
                .settle()
                .map_err(|source| CommitError::Unanchored { epoch, source })?;
        }
        if ledger.uncovered.batches > 0 {
            ledger
                .checkpoint()
                .map_err(|source| CommitError::Unanchored { epoch, source })?;
        }
        Ok(ledger)
    }
}

/// What the batch of a start after a TPM reset says of losses of power. Its number tells it from
/// every other one; its time is for people to read.
fn power_loss(boot: Boot, head: &ChainRecord, now: Moment) -> Option<PowerLoss> {
    match boot {
        Boot::AfterPowerLoss {
            cut_off: Some(window),
        } => Some(PowerLoss {
            batch: head.epoch().next(),
            time: UnixSeconds::of(now.wall),
            window,
        }),
        Boot::AfterPowerLoss { cut_off: None }
        | Boot::AfterShutdown
        | Boot::Continued
        | Boot::Unfinished => head.power_loss(),
    }
}

impl FirstStart {
    pub(super) fn new(keys: RollbackKeys) -> Self {
        Self { keys }
    }

    /// Defines the registers and commits the first batch, over no vRoT at all. Cut short, it
    /// can be repeated.
    pub fn begin<R: AnchorRegisters, E>(
        self,
        mut registers: R,
        policy: AnchorPolicy,
        now: Moment,
        store: impl FnOnce(&LedgerWrites) -> Result<(), E>,
    ) -> Result<Ledger<R>, FirstStartError<E>> {
        for register in Register::BOTH {
            registers
                .define(register)
                .map_err(FirstStartError::Register)?;
        }
        let highest = registers
            .generation()
            .map_err(FirstStartError::Generation)?;
        let tree = StateTree::default();
        let head = ChainRecord::new(
            &self.keys,
            ChainRecordFields {
                epoch: Epoch::default().next(),
                previous: Link::NONE,
                root: tree.root(),
                highest,
                time: UnixSeconds::of(now.wall),
                salt: Salt::random(),
                kind: Kind::First,
                power_loss: None,
                log: None,
            },
        );
        store(&LedgerWrites {
            epoch: head.epoch(),
            record: head.to_record(),
            leaves: Vec::new(),
            prune_below: head.epoch(),
        })
        .map_err(FirstStartError::Store)?;
        let mut ledger = Ledger {
            keys: self.keys,
            registers,
            policy,
            floor: head.epoch(),
            head,
            log: None,
            tree,
            leaves: BTreeMap::new(),
            volatile: None,
            durable: None,
            uncovered: Uncovered::default(),
        };
        ledger.settle().map_err(FirstStartError::Register)?;
        Ok(ledger)
    }
}
