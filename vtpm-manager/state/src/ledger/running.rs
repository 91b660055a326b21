//! The running side: each batch goes into the store and then into the anchor, in this order.
//!
//! The store is ahead of the volatile register by one batch at most, and only between the two
//! writes. That is what a start may find, and what it may finish.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cert_chain::VrotId;

use super::chain::{ChainRecord, ChainRecordFields, Kind, Link, PowerLoss, Salt, UnixSeconds};
use super::changes::Changes;
use super::keys::RollbackKeys;
use super::leaf::{Leaf, part_digest};
use super::log_mark::LogMark;
use super::policy::{AnchorPolicy, Moment, Window};
use super::register::{AnchorRegisters, Register, RegisterError};
use super::registered_head::{Leave, RegisteredHead};
use super::tree::StateTree;
use crate::disk::{Epoch, LedgerWrites, NotCommitted, Part};

/// The newest batch, the tree it made, and the registers that vouch for it. There is one only
/// after a start that was not refused: [`super::Start`], [`super::FirstStart`] and
/// [`super::Recovery`] make it.
#[derive(Debug)]
pub struct Ledger<R> {
    pub(super) keys: RollbackKeys,
    pub(super) registers: R,
    pub(super) policy: AnchorPolicy,
    pub(super) head: ChainRecord,
    pub(super) tree: StateTree,
    pub(super) leaves: BTreeMap<VrotId, Leaf>,
    /// What the volatile register is known to hold.
    pub(super) volatile: Option<Link>,
    /// What the durable register is known to hold.
    pub(super) durable: Option<RegisteredHead>,
    /// What the next batch says of the log beside the store.
    pub(super) log: Option<LogMark>,
    /// The durable register must reach this batch before anything else is acknowledged.
    pub(super) floor: Epoch,
    pub(super) uncovered: Uncovered,
}

/// A ledger over whatever registers the host has.
pub type HostLedger = Ledger<Box<dyn AnchorRegisters + Send>>;

/// Batches of changes that the durable register does not cover.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Uncovered {
    pub(super) batches: u64,
    pub(super) since: Option<Instant>,
    /// When the first of them was made by which vRoTs were made, or given to VMs.
    pub(super) set_since: Option<Instant>,
}

/// What a batch does to the set of vRoTs.
#[derive(Clone, Copy, Debug)]
struct SetChange {
    /// vRoTs are made, or given to VMs.
    grows: bool,
    /// vRoTs go.
    shrinks: bool,
}

/// Why a batch is not acknowledged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError<E> {
    /// The store did not take the batch. Whether it did after all can only be told by opening
    /// it anew.
    #[error("the store did not take the batch")]
    Store(#[source] E),
    /// The store has the batch, the anchor does not: call [`Ledger::settle`] until it does, and
    /// acknowledge then.
    #[error("batch {epoch} is in the store, but not in the rollback anchor")]
    Unanchored {
        /// The batch.
        epoch: Epoch,
        /// What the register said.
        #[source]
        source: RegisterError,
    },
    /// The batch changes a vRoT that does not exist. Nothing was written.
    #[error("vRoT {vrot} is not in the store: it was deleted, or never made")]
    UnknownVrot {
        /// The vRoT.
        vrot: VrotId,
    },
    /// An earlier batch is not anchored yet, so this one was not begun.
    #[error("an earlier batch is not in the rollback anchor yet")]
    Unsettled(#[source] RegisterError),
}

/// Chain records that may pile up before a checkpoint is made early: 60 MB of them, checked in
/// less than a second at start. At 200 batches a second it is twice the default interval.
pub const MAX_CHAIN: u64 = 1 << 18;

/// After new vRoTs, or after some were given to VMs, a checkpoint is made within this time, and
/// not with each: a pool that is filled and a host that starts a thousand VMs share the few
/// writes of flash that this costs.
pub const SET_INTERVAL: Duration = Duration::from_secs(10);

impl<R: AnchorRegisters> Ledger<R> {
    /// Commits a batch: `store` writes contents and [`LedgerWrites`] in one transaction and returns
    /// when they are durable; then the anchor is written. What this returns may be
    /// acknowledged.
    pub fn commit<E>(
        &mut self,
        changes: &Changes,
        now: Moment,
        store: impl FnOnce(&LedgerWrites) -> Result<(), E>,
    ) -> Result<Epoch, CommitError<E>> {
        let power_loss = self.head.power_loss();
        self.append(Kind::Changes, power_loss, changes, now, store)
    }

    /// Says what the batches from now on say of the log beside the store.
    pub fn mark_log(&mut self, mark: LogMark) {
        self.log = Some(mark);
    }

    /// Brings the anchor up to the newest batch. Does nothing where it is there already.
    pub fn settle(&mut self) -> Result<(), RegisterError> {
        if self.volatile != Some(self.head.link()) {
            let anchor = self.anchor(self.policy.leave());
            self.registers.write(
                Register::Volatile,
                &anchor.seal(&self.keys, Register::Volatile),
            )?;
            self.volatile = Some(anchor.link);
        }
        if self.durable_is_due() {
            self.write_durable(self.policy.leave())?;
        }
        Ok(())
    }

    /// LedgerWrites the durable register if the store changed since it was written.
    pub fn checkpoint(&mut self) -> Result<(), RegisterError> {
        self.settle()?;
        if self.durable_link() != Some(self.head.link()) {
            self.write_durable(self.policy.leave())?;
        }
        Ok(())
    }

    /// Shuts down: the durable register holds the newest batch and says that none follows. A
    /// batch that is committed afterwards all the same takes that back first.
    pub fn close(&mut self) -> Result<(), RegisterError> {
        self.settle()?;
        if self.durable != Some(self.anchor(Leave::Closed)) {
            self.write_durable(Leave::Closed)?;
        }
        Ok(())
    }

    /// When [`Ledger::checkpoint`] is due; `None` while nothing changed.
    pub fn checkpoint_due(&self) -> Option<Instant> {
        let since = self.uncovered.since?;
        if self.uncovered.batches >= MAX_CHAIN {
            return Some(since);
        }
        let due = since + self.policy.limit();
        let set_due = (self.uncovered.set_since).map(|since| since + SET_INTERVAL);
        Some(set_due.map_or(due, |set_due| due.min(set_due)))
    }

    /// What a loss of power could cut off now.
    pub fn window(&self, now: Moment) -> Window {
        Window {
            batches: self.uncovered.batches,
            age: (self.uncovered.since).map(|since| now.monotonic.duration_since(since)),
            limit: self.policy.limit(),
        }
    }

    /// The policy in force.
    pub fn policy(&self) -> AnchorPolicy {
        self.policy
    }

    /// The newest batch.
    pub fn head(&self) -> &ChainRecord {
        &self.head
    }

    /// The leaf of a vRoT; `None` for one that does not exist.
    pub fn leaf(&self, vrot: &VrotId) -> Option<&Leaf> {
        self.leaves.get(vrot)
    }

    /// Checks contents that were read from the store against what was committed last: other
    /// writers of the disk can change it while the manager runs as well.
    pub fn check(
        &self,
        vrot: VrotId,
        part: Part,
        contents: Option<&[u8]>,
    ) -> Result<(), NotCommitted> {
        let committed = self.leaf(&vrot).and_then(|leaf| leaf.part(part));
        if committed == contents.map(|contents| part_digest(part, contents)) {
            Ok(())
        } else {
            Err(NotCommitted { vrot, part })
        }
    }

    pub(super) fn append<E>(
        &mut self,
        kind: Kind,
        power_loss: Option<PowerLoss>,
        changes: &Changes,
        now: Moment,
        store: impl FnOnce(&LedgerWrites) -> Result<(), E>,
    ) -> Result<Epoch, CommitError<E>> {
        if kind == Kind::Changes {
            self.settle().map_err(CommitError::Unsettled)?;
        }
        let after = changes
            .apply(&self.leaves)
            .map_err(|vrot| CommitError::UnknownVrot { vrot })?;
        let mut tree = self.tree.clone();
        let mut highest = self.head.highest();
        let mut leaves = Vec::with_capacity(after.len());
        for (vrot, leaf) in &after {
            tree = match leaf {
                Some(leaf) => {
                    highest = highest.max(leaf.generation());
                    tree.with(vrot, leaf.hash(vrot))
                }
                None => tree.without(vrot),
            };
            leaves.push((*vrot, leaf.as_ref().map(encode_leaf)));
        }
        let batch = ChainRecord::new(
            &self.keys,
            ChainRecordFields {
                epoch: self.head.epoch().next(),
                previous: self.head.link(),
                root: tree.root(),
                highest,
                time: UnixSeconds::of(now.wall),
                salt: Salt::random(),
                kind,
                power_loss,
                log: self.log,
            },
        );
        store(&LedgerWrites {
            epoch: batch.epoch(),
            record: batch.to_record(),
            leaves,
            prune_below: self.durable.map_or(Epoch::default(), |anchor| anchor.epoch),
        })
        .map_err(CommitError::Store)?;
        let mut set = SetChange {
            grows: changes.of_ownership,
            shrinks: false,
        };
        for (vrot, leaf) in after {
            let lived = self.leaves.get(&vrot).is_some_and(Leaf::is_living);
            let lives = leaf.as_ref().is_some_and(Leaf::is_living);
            set.grows |= lives && !lived;
            set.shrinks |= lived && !lives;
            match leaf {
                Some(leaf) => self.leaves.insert(vrot, leaf),
                None => self.leaves.remove(&vrot),
            };
        }
        self.advance(batch, tree, now, set);
        let epoch = self.head.epoch();
        self.settle()
            .map_err(|source| CommitError::Unanchored { epoch, source })?;
        Ok(epoch)
    }

    fn advance(&mut self, batch: ChainRecord, tree: StateTree, now: Moment, set: SetChange) {
        // A batch that is no mere change, that raises a generation, or by which a vRoT goes, is
        // worth a flash write of its own: it must not be cut off.
        let is_mere_change = *batch.kind() == Kind::Changes;
        if !is_mere_change || batch.highest() > self.head.highest() || set.shrinks {
            self.floor = batch.epoch();
        }
        if set.grows {
            self.uncovered.set_since.get_or_insert(now.monotonic);
        }
        self.head = batch;
        self.tree = tree;
        self.uncovered.batches += 1;
        self.uncovered.since.get_or_insert(now.monotonic);
    }

    fn anchor(&self, leave: Leave) -> RegisteredHead {
        RegisteredHead {
            epoch: self.head.epoch(),
            link: self.head.link(),
            highest: self.head.highest(),
            leave,
        }
    }

    fn durable_link(&self) -> Option<Link> {
        self.durable.map(|anchor| anchor.link)
    }

    fn durable_is_due(&self) -> bool {
        let Some(durable) = self.durable else {
            return true;
        };
        // Before a change follows, the register must say that changes may follow.
        durable.leave != self.policy.leave()
            || durable.epoch < self.floor
            || (self.policy == AnchorPolicy::Strict && durable.link != self.head.link())
    }

    fn write_durable(&mut self, leave: Leave) -> Result<(), RegisterError> {
        let anchor = self.anchor(leave);
        self.registers.write(
            Register::Durable,
            &anchor.seal(&self.keys, Register::Durable),
        )?;
        self.durable = Some(anchor);
        self.uncovered = Uncovered::default();
        Ok(())
    }
}

pub(super) fn encode_leaf(leaf: &Leaf) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::new());
    // Infallible: a vector takes every byte.
    let _ = encoder.encode(leaf);
    encoder.into_writer()
}
