//! What is decided about a whole store at start, and what an operator does about it.

use std::collections::BTreeMap;
use std::fmt;

use cert_chain::{Generation, VrotId};

use crate::disk::{Batch, Part, Store, StoreError};
use crate::ledger::decision::ReadingsError;
use crate::ledger::leaf::part_digest;
use crate::ledger::recovery::AcceptError;
use crate::ledger::{
    AnchorPolicy, AnchorRegisters, Boot, CommitError, Decision, FirstStartError, GenerationError,
    HostLedger, Leaf, Moment, PartDigests, Readings, Recovered, Recovery, RecoveryError,
    RecoveryRecord, Refusal, Refused, RegisterError, RollbackKeys, Stored, decide,
};

/// What guards a store: the host's keys and registers, and how often they are written.
pub struct Guard {
    /// Keys from the root secret.
    pub keys: RollbackKeys,
    /// The rollback anchor.
    pub registers: Box<dyn AnchorRegisters + Send>,
    /// When the durable register is written.
    pub policy: AnchorPolicy,
}

/// What a start found.
#[derive(Debug)]
pub enum Opening {
    /// The store is the newest; all goes through this ledger.
    Opened {
        /// The ledger.
        ledger: Box<HostLedger>,
        /// How the host came up.
        boot: Boot,
        /// A recent recovery, which may be unrecorded.
        recovered: Option<Recovered>,
    },
    /// Nothing was ever stored here: `host init` comes first.
    Blank,
    /// The store is refused, and nothing was changed.
    Refused(Box<Refused>),
}

/// Why a guarded store was not opened, set up or recovered.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The host was set up before.
    #[error("this host has a store and a rollback anchor already: nothing was changed")]
    NotBlank,
    /// The generation counter.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// There is nothing to recover from.
    #[error("the store is not refused: there is nothing to recover from, and nothing was changed")]
    NotRefused,
    /// The operator named something else than was found, or what cannot be accepted.
    #[error("not recovered from `{accepted}`: {refusal}. {}", refusal.last_resort())]
    NotAccepted {
        /// What the operator named.
        accepted: String,
        /// What was found.
        refusal: Refusal,
    },
    /// A vRoT was not rewritten as the recovery needs it.
    #[error("vRoT {vrot} could not be given generation {generation}")]
    NotRaised {
        /// Which.
        vrot: VrotId,
        /// The new generation.
        generation: Generation,
    },
    /// A register.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Guard {
    /// Decides about the store, and brings the anchor up to it.
    pub fn open(mut self, store: &dyn Store) -> Result<Opening, GuardError> {
        let start = match self.decide(store)? {
            Decision::FirstStart(_) => return Ok(Opening::Blank),
            Decision::Refused(refused) => return Ok(Opening::Refused(refused)),
            Decision::Equal(start) | Decision::AheadByChain(start) => start,
        };
        let (boot, recovered) = (start.boot(), start.recovered());
        let ledger = start.begin(self.registers, self.policy, Moment::now(), |writes| {
            store.commit(&Batch::default().with_ledger(writes.clone()))
        })?;
        Ok(Opening::Opened {
            ledger: Box::new(ledger),
            boot,
            recovered,
        })
    }

    /// Sets up store and anchor of a blank host.
    pub fn initialise(mut self, store: &dyn Store) -> Result<HostLedger, GuardError> {
        let Decision::FirstStart(first) = self.decide(store)? else {
            return Err(GuardError::NotBlank);
        };
        Ok(
            first.begin(self.registers, self.policy, Moment::now(), |writes| {
                store.commit(&Batch::default().with_ledger(writes.clone()))
            })?,
        )
    }

    /// Accepts the present store, which the operator named by the code of its refusal.
    /// `rewrite` gives a vRoT that is raised its new generation: all parts of it that change. One
    /// that cannot be used any more it deletes.
    pub fn recover(
        mut self,
        store: &dyn Store,
        accepted: &str,
        mut rewrite: impl FnMut(VrotId, Generation) -> Result<Batch, StoreError>,
    ) -> Result<(HostLedger, RecoveryRecord), GuardError> {
        let Decision::Refused(refused) = self.decide(store)? else {
            return Err(GuardError::NotRefused);
        };
        let recovery =
            refused
                .accept(accepted, &mut self.registers)
                .map_err(|error| match error {
                    AcceptError::NotAccepted(refusal) => GuardError::NotAccepted {
                        accepted: accepted.to_owned(),
                        refusal: *refusal,
                    },
                    AcceptError::Generation(error) => GuardError::Generation(error),
                })?;
        let mut batch = Batch::default();
        let mut leaves = BTreeMap::new();
        for vrot in recovery.raised() {
            let rewritten = rewrite(*vrot, recovery.generation())?;
            leaves.insert(*vrot, rewritten_leaf(store, &recovery, *vrot, &rewritten)?);
            batch = batch.followed_by(rewritten);
        }
        for vrot in recovery.discarded() {
            batch = batch.delete(*vrot);
        }
        Ok(recovery.carry_out(
            self.registers,
            leaves,
            self.policy,
            Moment::now(),
            |writes| store.commit(&batch.with_ledger(writes.clone())),
        )?)
    }

    fn decide(&mut self, store: &dyn Store) -> Result<Decision, GuardError> {
        let readings = Readings::take(&mut self.registers)?;
        Ok(decide(&self.keys, &stored(store)?, &readings))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Everything that the store holds, hashed.
fn stored(store: &dyn Store) -> Result<Stored, StoreError> {
    let ledger = store.ledger()?;
    let mut contents = BTreeMap::new();
    for vrot in store.vrots()? {
        contents.insert(vrot, digests(store, vrot, &Batch::default())?);
    }
    Ok(Stored {
        chain: ledger.chain,
        leaves: ledger.leaves,
        contents,
    })
}

/// The digests of a vRoT's parts as the store has them, with the changes of `batch`.
fn digests(store: &dyn Store, vrot: VrotId, batch: &Batch) -> Result<PartDigests, StoreError> {
    let changed: BTreeMap<Part, Option<&[u8]>> = batch
        .changes()
        .filter(|(of, ..)| *of == vrot)
        .map(|(_, part, contents)| (part, contents))
        .collect();
    let mut digests = PartDigests::new();
    for part in Part::ALL {
        let digest = match changed.get(&part) {
            Some(contents) => contents.map(|contents| part_digest(part, contents)),
            None => (store.read(vrot, part)?).map(|contents| part_digest(part, &contents)),
        };
        digests.extend(digest.map(|digest| (part, digest)));
    }
    Ok(digests)
}

fn rewritten_leaf(
    store: &dyn Store,
    recovery: &Recovery,
    vrot: VrotId,
    rewritten: &Batch,
) -> Result<Option<Leaf>, GuardError> {
    let generation = recovery.generation();
    let only_this = rewritten.changes().all(|(of, ..)| of == vrot);
    let parts = digests(store, vrot, rewritten)?;
    if only_this && parts.is_empty() {
        Ok(None)
    } else if only_this && rewritten.generation(vrot) == Some(generation) {
        Ok(Some(Leaf::over(generation, parts)))
    } else {
        Err(GuardError::NotRaised { vrot, generation })
    }
}

impl From<ReadingsError> for GuardError {
    fn from(error: ReadingsError) -> Self {
        match error {
            ReadingsError::Generation(error) => Self::Generation(error),
            ReadingsError::Register(error) => Self::Register(error),
        }
    }
}

impl From<CommitError<StoreError>> for GuardError {
    fn from(error: CommitError<StoreError>) -> Self {
        match error {
            CommitError::Store(error) => Self::Store(error),
            CommitError::UnknownVrot { vrot } => Self::Store(StoreError::UnknownVrot { vrot }),
            CommitError::Unanchored { source, .. } | CommitError::Unsettled(source) => {
                Self::Register(source)
            }
        }
    }
}

impl From<FirstStartError<StoreError>> for GuardError {
    fn from(error: FirstStartError<StoreError>) -> Self {
        match error {
            FirstStartError::Store(error) => Self::Store(error),
            FirstStartError::Generation(error) => Self::Generation(error),
            FirstStartError::Register(error) => Self::Register(error),
        }
    }
}

impl From<RecoveryError<StoreError>> for GuardError {
    fn from(error: RecoveryError<StoreError>) -> Self {
        match error {
            RecoveryError::Generation { vrot, generation } => Self::NotRaised { vrot, generation },
            RecoveryError::Store(error) => Self::Store(error),
            RecoveryError::Register(error) => Self::Register(error),
        }
    }
}
