//! An operator accepts a store that was refused. Nothing else gets past a refusal.

use std::collections::{BTreeMap, BTreeSet};

use cert_chain::{Generation, VrotId};
use serde::Serialize;

use super::chain::{ChainRecord, ChainRecordFields, Kind, Link, PowerLoss, Salt, UnixSeconds};
use super::contents::{self, Differences, Stored};
use super::keys::RollbackKeys;
use super::leaf::Leaf;
use super::log_mark::LogMark;
use super::policy::{AnchorPolicy, Moment};
use super::refusal::Refusal;
use super::register::{AnchorRegisters, GenerationError, Register, RegisterError};
use super::registered_head::RegisteredHead;
use super::running::{Ledger, Uncovered, encode_leaf};
use super::tree::StateTree;
use crate::disk::{Epoch, LedgerWrites};

/// What accepting the present store means: which vRoTs get a new generation, and which records
/// go because their vRoT was deleted. [`super::Refused::accept`] makes it.
#[derive(Debug)]
pub struct Recovery {
    keys: RollbackKeys,
    code: &'static str,
    finding: String,
    epoch: Epoch,
    previous: Link,
    /// Before it is numbered: the highest that store or anchor know of. Then the new one.
    generation: Generation,
    volatile: Option<Link>,
    durable: Option<Link>,
    /// The leaves of vRoTs that stay as they are.
    kept: BTreeMap<VrotId, Leaf>,
    vanished: BTreeSet<VrotId>,
    raised: BTreeSet<VrotId>,
    discarded: BTreeSet<VrotId>,
    power_loss: Option<PowerLoss>,
    log: Option<LogMark>,
}

/// What a recovery leaves in the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecoveryRecord {
    /// What was accepted, as the operator named it.
    pub accepted: &'static str,
    /// What had been found, in words.
    pub finding: String,
    /// Number of the batch that the recovery is.
    pub batch: u64,
    /// The generation that the vRoTs have from now on.
    pub generation: Generation,
    /// vRoTs that have it.
    pub raised: Vec<VrotId>,
    /// Deleted vRoTs whose records had come back, and went.
    pub discarded: Vec<VrotId>,
    /// vRoTs of which nothing was left, or nothing that can be used.
    pub lost: Vec<VrotId>,
}

/// Why there is no recovery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The TPM gave no generation.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The operator named something else than was found, or what cannot be accepted.
    #[error(transparent)]
    NotAccepted(Box<Refusal>),
}

/// Why a recovery was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError<E> {
    /// The generation of a vRoT was not raised as [`Recovery::generation`] says, or another
    /// vRoT was changed.
    #[error("vRoT {vrot} is not as the recovery needs it: its generation has to be {generation}")]
    Generation {
        /// Which.
        vrot: VrotId,
        /// The new generation.
        generation: Generation,
    },
    /// A register.
    #[error(transparent)]
    Register(RegisterError),
    /// The store.
    #[error("the store did not take the recovery")]
    Store(#[source] E),
}

/// The generation that a new vRoT has.
const FIRST_GENERATION: Generation = Generation::new(1);

impl Recovery {
    pub(super) fn new(
        keys: RollbackKeys,
        refusal: &Refusal,
        stored: &Stored,
        head: Option<&ChainRecord>,
        [volatile, durable]: [Option<RegisteredHead>; 2],
    ) -> Self {
        let anchors = [volatile, durable].into_iter().flatten();
        let committed = contents::committed(stored)
            .filter(|(tree, _)| head.is_some_and(|head| head.root() == tree.root()));
        let all = || stored.contents.keys().copied().collect();
        let by_record = matches!(
            refusal,
            Refusal::StaleRecords { .. }
                | Refusal::SwappedRecords { .. }
                | Refusal::ReturnedRecords { .. }
                | Refusal::MissingRecords { .. }
        );
        let (raised, discarded): (BTreeSet<VrotId>, BTreeSet<VrotId>) = match &committed {
            Some((_, leaves)) => {
                let differing = Differences::between(leaves, &stored.contents).vrots();
                let (known, deleted): (BTreeSet<_>, BTreeSet<_>) = (stored.contents.keys())
                    .copied()
                    .partition(|vrot| leaves.contains_key(vrot));
                let raised = if by_record {
                    known.intersection(&differing).copied().collect()
                } else {
                    known
                };
                (raised, deleted)
            }
            None => (all(), BTreeSet::new()),
        };
        // What an unauthenticated record states does not count: each step above it would wear the
        // TPM's counter. All generations but the first are that counter's, which passes them all.
        let highest = (anchors.clone().map(|anchor| anchor.highest))
            .chain(head.map(ChainRecord::highest))
            .fold(FIRST_GENERATION, Generation::max);
        let newest = (anchors.map(|anchor| anchor.epoch))
            .chain(head.map(ChainRecord::epoch))
            .max();
        Self {
            keys,
            code: refusal.code(),
            finding: refusal.to_string(),
            epoch: newest.unwrap_or_default().next(),
            previous: head.map_or(Link::NONE, ChainRecord::link),
            generation: highest,
            volatile: volatile.map(|anchor| anchor.link),
            durable: durable.map(|anchor| anchor.link),
            vanished: (stored.leaves.keys())
                .filter(|vrot| !stored.contents.contains_key(vrot))
                .copied()
                .collect(),
            kept: (committed.into_iter())
                .flat_map(|(_, leaves)| leaves)
                .filter(|(vrot, _)| stored.contents.contains_key(vrot) && !raised.contains(vrot))
                .collect(),
            raised,
            discarded,
            // Where all are raised, verifiers see the new generation instead.
            power_loss: head.filter(|_| by_record).and_then(ChainRecord::power_loss),
            log: head.and_then(ChainRecord::log),
        }
    }

    /// Takes the new generation. What store and anchor know of is not enough: a store that is
    /// put back a second time, beside indices that were removed, knows of no recovery of it.
    /// The TPM's counter does, and cannot be put back.
    pub(super) fn numbered(
        mut self,
        registers: &mut impl AnchorRegisters,
    ) -> Result<Self, GenerationError> {
        self.generation = registers.new_generation(self.generation)?;
        Ok(self)
    }

    /// vRoTs whose state may be older than what a verifier has seen: each gets
    /// [`Recovery::generation`], in its record, its seal and its certificates.
    pub fn raised(&self) -> &BTreeSet<VrotId> {
        &self.raised
    }

    /// Deleted vRoTs whose records are there again: they go, as deletion is final.
    pub fn discarded(&self) -> &BTreeSet<VrotId> {
        &self.discarded
    }

    /// The new generation of all that are raised: higher than any that this host's store or
    /// anchor knows of, and than any that an earlier recovery got from this TPM, so that no two
    /// histories share one.
    ///
    /// Another TPM, or this one after `TPM2_Clear`, does not matter here: it does not unseal the
    /// root secret, so what lies in the store is a foreign store, which cannot be accepted.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Carries it out. `rewritten` has the new leaf of each raised vRoT, or `None` for one that
    /// has to be given up; `store` writes those
    /// records, removes the discarded ones, and writes [`LedgerWrites`], in one transaction. Cut
    /// short before that transaction, the store is refused as before; cut short after it, the
    /// next start finishes it, or refuses it once more where an index was not there.
    pub fn carry_out<R: AnchorRegisters, E>(
        self,
        mut registers: R,
        rewritten: BTreeMap<VrotId, Option<Leaf>>,
        policy: AnchorPolicy,
        now: Moment,
        store: impl FnOnce(&LedgerWrites) -> Result<(), E>,
    ) -> Result<(Ledger<R>, RecoveryRecord), RecoveryError<E>> {
        let generation = self.generation();
        if let Some(vrot) = self.not_as_needed(&rewritten, generation) {
            return Err(RecoveryError::Generation { vrot, generation });
        }
        let record = self.record(&rewritten);
        let mut leaves = self.kept;
        let given_up: Vec<VrotId> = record.lost.clone();
        leaves.extend((rewritten.into_iter()).filter_map(|(vrot, leaf)| Some((vrot, leaf?))));
        let tree: StateTree = (leaves.iter())
            .map(|(vrot, leaf)| (vrot, leaf.hash(vrot)))
            .collect();
        // Unwritten, the durable register vouches for nothing but this recovery. An unwritten
        // volatile one would pass for a loss of power: it comes after the store.
        registers
            .define(Register::Durable)
            .map_err(RecoveryError::Register)?;
        let head = ChainRecord::new(
            &self.keys,
            ChainRecordFields {
                epoch: self.epoch,
                previous: self.previous,
                root: tree.root(),
                highest: generation,
                time: UnixSeconds::of(now.wall),
                salt: Salt::random(),
                kind: Kind::Recovery {
                    volatile: self.volatile,
                    durable: self.durable,
                },
                power_loss: self.power_loss,
                log: self.log,
            },
        );
        let gone = given_up.iter().chain(&self.discarded);
        let written = (leaves.iter()).map(|(vrot, leaf)| (*vrot, Some(encode_leaf(leaf))));
        store(&LedgerWrites {
            epoch: head.epoch(),
            record: head.to_record(),
            leaves: gone.map(|vrot| (*vrot, None)).chain(written).collect(),
            // The recovery names what the anchor holds: nothing before it is needed.
            prune_below: head.epoch(),
        })
        .map_err(RecoveryError::Store)?;
        registers
            .define(Register::Volatile)
            .map_err(RecoveryError::Register)?;
        let mut ledger = Ledger {
            keys: self.keys,
            registers,
            policy,
            floor: head.epoch(),
            log: head.log(),
            head,
            tree,
            leaves,
            volatile: None,
            durable: None,
            uncovered: Uncovered::default(),
        };
        ledger.settle().map_err(RecoveryError::Register)?;
        Ok((ledger, record))
    }

    fn not_as_needed(
        &self,
        rewritten: &BTreeMap<VrotId, Option<Leaf>>,
        generation: Generation,
    ) -> Option<VrotId> {
        let not_raised = (self.raised.iter()).find(|vrot| {
            !rewritten.get(vrot).is_some_and(|leaf| {
                leaf.as_ref()
                    .is_none_or(|leaf| leaf.generation() == generation)
            })
        });
        let not_asked_for = rewritten.keys().find(|vrot| !self.raised.contains(vrot));
        not_raised.or(not_asked_for).copied()
    }

    fn record(&self, rewritten: &BTreeMap<VrotId, Option<Leaf>>) -> RecoveryRecord {
        let (kept, given_up): (Vec<VrotId>, Vec<VrotId>) =
            (rewritten.keys()).partition(|vrot| rewritten.get(vrot).is_some_and(Option::is_some));
        RecoveryRecord {
            accepted: self.code,
            finding: self.finding.clone(),
            batch: self.epoch.number(),
            generation: self.generation,
            raised: kept,
            discarded: self.discarded.iter().copied().collect(),
            lost: self.vanished.iter().copied().chain(given_up).collect(),
        }
    }
}
