//! What a manager decides before any vRoT starts: whether the store that lies there is the one
//! that the physical TPM vouches for.
//!
//! While the TPM has power, the volatile register names the newest batch, and the store is that
//! batch or the one after it, which was not acknowledged. After a TPM reset there is only
//! the durable register: the store must continue it by the authenticated chain, and how far it
//! may, the register itself says. Anything else is refused, and nothing is changed. There is no
//! falling back to an older state that authenticates: that would be the rollback.

use cert_chain::Generation;

use super::chain::{ChainRecord, ChainRecordError, Kind, Link};
use super::contents::{self, Differences, Stored};
use super::keys::RollbackKeys;
use super::recovery::{AcceptError, Recovery};
use super::refusal::Refusal;
use super::register::{AnchorRegisters, GenerationError, Reading, Register, RegisterError};
use super::registered_head::{Leave, RegisteredHead};
use super::start::{Boot, FirstStart, Recovered, Start};
use crate::disk::Epoch;

/// What to do at start.
#[derive(Debug)]
pub enum Decision {
    /// The store is the batch that the anchor names.
    Equal(Start),
    /// The store continues the anchor by the chain, as far as it may: the anchor follows.
    AheadByChain(Start),
    /// Neither store nor anchor: nothing was ever here. Only `host init` may go on.
    FirstStart(FirstStart),
    /// Anything else.
    Refused(Box<Refused>),
}

/// A start that was refused.
#[derive(Debug)]
pub struct Refused {
    refusal: Refusal,
    recovery: Recovery,
}

/// What the TPM holds: the two registers, and the counter of generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    /// The volatile register.
    pub volatile: Reading,
    /// The durable register.
    pub durable: Reading,
    /// The newest generation that was given out.
    pub generation: Generation,
}

/// Something that could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadingsError {
    /// The generation counter.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A register.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl Readings {
    /// Reads registers and counter.
    pub fn take(registers: &mut impl AnchorRegisters) -> Result<Self, ReadingsError> {
        Ok(Self {
            volatile: registers.read(Register::Volatile)?,
            durable: registers.read(Register::Durable)?,
            generation: registers.generation()?,
        })
    }
}

impl Refused {
    /// What was found.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// The operator accepts what was found, and has to name it. Takes a new generation from the
    /// TPM, whether the recovery is carried out or not.
    pub fn accept(
        self,
        code: &str,
        registers: &mut impl AnchorRegisters,
    ) -> Result<Recovery, AcceptError> {
        if self.refusal.code() != code || !self.refusal.is_recoverable() {
            return Err(AcceptError::NotAccepted(Box::new(self.refusal)));
        }
        Ok(self.recovery.numbered(registers)?)
    }
}

/// Decides. Reads nothing but its arguments and changes nothing.
pub fn decide(keys: &RollbackKeys, stored: &Stored, readings: &Readings) -> Decision {
    let volatile = Found::of(keys, Register::Volatile, &readings.volatile);
    let durable = Found::of(keys, Register::Durable, &readings.durable);
    let mut chain = Chain::default();
    let judged = judge(
        keys,
        stored,
        [volatile, durable],
        readings.generation,
        &mut chain,
    );
    let refusal = match judged {
        Ok(Judged::Nothing) => return Decision::FirstStart(FirstStart::new(keys.clone())),
        Ok(Judged::Store(start, Standing::Equal)) => return Decision::Equal(*start),
        Ok(Judged::Store(start, Standing::Ahead)) => return Decision::AheadByChain(*start),
        Err(refusal) => refusal,
    };
    let recovery = Recovery::new(
        keys.clone(),
        &refusal,
        stored,
        chain.0.last(),
        [volatile, durable].map(Found::head),
    );
    Decision::Refused(Box::new(Refused { refusal, recovery }))
}

/// What a register says once its contents are authenticated.
#[derive(Clone, Copy, Debug)]
enum Found {
    Absent,
    Foreign,
    Unwritten,
    Head(RegisteredHead),
}

enum Judged {
    Nothing,
    Store(Box<Start>, Standing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Equal,
    Ahead,
}

/// Authenticated records, each following the one before it.
#[derive(Default)]
struct Chain(Vec<ChainRecord>);

impl Found {
    fn of(keys: &RollbackKeys, register: Register, reading: &Reading) -> Self {
        match reading {
            Reading::Absent => Self::Absent,
            Reading::Foreign => Self::Foreign,
            Reading::Unwritten => Self::Unwritten,
            Reading::Written(contents) => {
                RegisteredHead::open(keys, register, contents).map_or(Self::Foreign, Self::Head)
            }
        }
    }

    fn head(self) -> Option<RegisteredHead> {
        match self {
            Self::Head(head) => Some(head),
            _ => None,
        }
    }
}

fn judge(
    keys: &RollbackKeys,
    stored: &Stored,
    [volatile, durable]: [Found; 2],
    generation: Generation,
    chain: &mut Chain,
) -> Result<Judged, Refusal> {
    for (register, found) in [(Register::Durable, durable), (Register::Volatile, volatile)] {
        if matches!(found, Found::Foreign) {
            // The chain is still read: a recovery continues it.
            let _ = chain.read(keys, stored);
            return Err(Refusal::ForeignAnchor { register });
        }
    }
    if stored.is_empty() {
        return match durable.head().or(volatile.head()) {
            Some(anchor) => Err(Refusal::EmptyStore {
                epoch: anchor.epoch,
            }),
            None => Ok(Judged::Nothing),
        };
    }
    chain.read(keys, stored)?;
    let head = chain.0.last().ok_or(Refusal::MissingChain)?;
    let (tree, leaves) = contents::committed(stored)
        .filter(|(tree, _)| tree.root() == head.root())
        .ok_or(Refusal::AlteredTree {
            epoch: head.epoch(),
        })?;
    let after_durable = chain.after_durable(durable, generation)?;
    let (standing, boot) = match volatile {
        Found::Absent | Found::Foreign => {
            return Err(Refusal::VolatileRemoved {
                epoch: head.epoch(),
            });
        }
        Found::Head(anchor) => (chain.after_volatile(anchor)?, Boot::Continued),
        Found::Unwritten => {
            let boot = within_leave(durable.head(), after_durable)?;
            let standing = if after_durable.is_empty() {
                Standing::Equal
            } else {
                Standing::Ahead
            };
            (standing, boot)
        }
    };
    Differences::between(&leaves, &stored.contents).refuse()?;
    let start = Start {
        keys: keys.clone(),
        head: head.clone(),
        volatile: volatile.head().map(|anchor| anchor.link),
        durable: durable.head(),
        floor: floor(durable.head(), after_durable),
        changes_uncovered: changes(after_durable),
        tree,
        leaves,
        boot,
        recovered: chain.recovered(),
    };
    Ok(Judged::Store(Box::new(start), standing))
}

impl Chain {
    fn read(&mut self, keys: &RollbackKeys, stored: &Stored) -> Result<(), Refusal> {
        let newest = stored.chain.len().saturating_sub(1);
        for (position, record) in stored.chain.iter().enumerate() {
            match ChainRecord::open(keys, record) {
                Ok(batch) => self.0.push(batch),
                Err(ChainRecordError::Format(_) | ChainRecordError::Link { .. })
                    if position == newest =>
                {
                    self.0.clear();
                    return Err(Refusal::ForeignStore);
                }
                Err(_) => {
                    // What is newer still authenticates by itself.
                    self.0 = (stored.chain.iter().skip(position + 1))
                        .filter_map(|record| ChainRecord::open(keys, record).ok())
                        .collect();
                    return Err(Refusal::AlteredChain { position });
                }
            }
        }
        for pair in self.0.windows(2) {
            if let [older, newer] = pair
                && newer.previous() != older.link()
            {
                return Err(Refusal::TruncatedChain {
                    after: older.epoch(),
                    before: newer.epoch(),
                });
            }
        }
        Ok(())
    }

    /// The batches that follow the one with this link; `None` where the chain does not come
    /// from it.
    fn after(&self, link: Link) -> Option<&[ChainRecord]> {
        if let Some(at) = self.0.iter().rposition(|batch| batch.link() == link) {
            return self.0.get(at + 1..);
        }
        let next = self.0.iter().rposition(|batch| batch.continues(link))?;
        self.0.get(next..)
    }

    fn after_durable(
        &self,
        durable: Found,
        generation: Generation,
    ) -> Result<&[ChainRecord], Refusal> {
        let head = self.0.last().ok_or(Refusal::MissingChain)?;
        let cleared = Refusal::ClearedTpm {
            epoch: head.epoch(),
        };
        match durable {
            Found::Head(anchor) => self
                .after(anchor.link)
                .ok_or_else(|| self.unrelated(head, Register::Durable, anchor)),
            // Only this host's manager defines an index that answers to its authorization
            // value, and only while it sets up or recovers.
            Found::Unwritten if begins_anew(head, generation) => Ok(self.0.as_slice()),
            Found::Unwritten | Found::Absent | Found::Foreign => Err(cleared),
        }
    }

    fn recovered(&self) -> Option<Recovered> {
        let is_recovery = |batch: &&ChainRecord| matches!(batch.kind(), Kind::Recovery { .. });
        self.0
            .iter()
            .rev()
            .find(is_recovery)
            .map(|batch| Recovered {
                batch: batch.epoch(),
                generation: batch.highest(),
            })
    }

    fn after_volatile(&self, anchor: RegisteredHead) -> Result<Standing, Refusal> {
        let head = self.0.last().ok_or(Refusal::MissingChain)?;
        let after = self
            .after(anchor.link)
            .ok_or_else(|| self.unrelated(head, Register::Volatile, anchor))?;
        match after {
            [] => Ok(Standing::Equal),
            [_] => Ok(Standing::Ahead),
            more => Err(Refusal::TooFarAhead {
                register: Register::Volatile,
                ahead: more.len(),
                allowed: 1,
            }),
        }
    }

    fn unrelated(&self, head: &ChainRecord, register: Register, anchor: RegisteredHead) -> Refusal {
        let (found, expected) = (head.epoch(), anchor.epoch);
        let time = head.time();
        let oldest = self.0.first().map_or(found, ChainRecord::epoch);
        if found < expected {
            return match register {
                Register::Durable => Refusal::RestoredStore {
                    found,
                    time,
                    expected,
                },
                Register::Volatile => Refusal::VolatileAhead {
                    found,
                    time,
                    expected,
                },
            };
        }
        if oldest > expected.next() {
            return Refusal::TruncatedChain {
                after: expected,
                before: oldest,
            };
        }
        Refusal::OtherBranch {
            register,
            found,
            expected,
        }
    }
}

/// Whether this batch may stand before a durable register that was never written: none but the
/// one that the newest generation was taken for. What an earlier one made is an old store.
fn begins_anew(head: &ChainRecord, generation: Generation) -> bool {
    match head.kind() {
        Kind::First | Kind::Recovery { durable: None, .. } => head.highest() == generation,
        Kind::Recovery {
            durable: Some(_), ..
        }
        | Kind::Changes
        | Kind::Start => false,
    }
}

/// How many batches of changes may follow the durable register, and what that tells of the boot.
fn within_leave(durable: Option<RegisteredHead>, after: &[ChainRecord]) -> Result<Boot, Refusal> {
    let Some(durable) = durable else {
        return Ok(Boot::Unfinished);
    };
    let (allowed, boot) = match durable.leave {
        Leave::Closed => (0, Boot::AfterShutdown),
        Leave::OneBatch => (1, Boot::AfterPowerLoss { cut_off: None }),
        Leave::Checkpoint(interval) => (
            usize::MAX,
            Boot::AfterPowerLoss {
                cut_off: Some(interval),
            },
        ),
    };
    let ahead = changes(after);
    if ahead > allowed {
        return Err(Refusal::TooFarAhead {
            register: Register::Durable,
            ahead,
            allowed,
        });
    }
    Ok(boot)
}

fn changes(batches: &[ChainRecord]) -> usize {
    batches
        .iter()
        .filter(|batch| *batch.kind() == Kind::Changes)
        .count()
}

/// The last batch that the durable register must not stay behind.
fn floor(durable: Option<RegisteredHead>, after: &[ChainRecord]) -> Epoch {
    let mut floor = Epoch::default();
    let mut highest = durable.map(|anchor| anchor.highest).unwrap_or_default();
    for batch in after {
        if *batch.kind() != Kind::Changes || batch.highest() > highest {
            floor = batch.epoch();
        }
        highest = batch.highest();
    }
    floor
}
