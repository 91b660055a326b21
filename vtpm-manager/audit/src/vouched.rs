//! The log, held against what the physical TPM vouches for.
//!
//! Each batch of the store names the newest line that was on the disk then, so the chain of batches,
//! and with it the registers of the TPM, vouch for all lines up to that one. A log that was
//! rewritten, cut off, put back or taken away while no manager ran does not have that line any more.
//! Lines after it are not vouched for yet: they may be missing after a crash.
//!
//! A log without that line is continued all the same, because guests must not wait for whoever looks
//! into it. What is missing stands in every batch from then on, until an operator accepts it.

use std::fmt;
use std::sync::{MutexGuard, PoisonError};

use api_types::Timestamp;
use api_types::audit::Parts;
use cert_chain::Digest32;
use guarded_state::ledger::chain::UnixSeconds;
use guarded_state::ledger::{LogMark, LogPosition, MarkedLog, MissingLog};
use serde::Deserialize;

use super::{Actor, AuditError, AuditLog, Event};

/// What is known about the log from the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    /// Whether the log was held against what the store says.
    done: bool,
    /// The oldest first, [`MAX_MISSING`] at most.
    missing: Vec<MissingLines>,
}

/// As many as a batch has room for: what was found first, so that no later alteration ends the warning
/// about it, and what was found last.
const MAX_MISSING: usize = 2;

/// Lines that the physical TPM vouches for, and that the log does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingLines {
    /// The newest of them.
    pub position: LogPosition,
    /// When that was found.
    pub found: Timestamp,
    /// What the log has instead.
    finding: String,
}

/// The number and the hash of a line.
#[derive(Deserialize)]
struct Line {
    sequence: u64,
    previous: Digest32,
    hash: Digest32,
}

impl AuditLog {
    /// Holds the log against what the newest batch of the store says; nothing of a store that has not
    /// known of a log. Afterwards, [`MarkedLog::mark`] has an answer. Returns what is missing since
    /// the last time. Reads the log from the beginning. Blocks.
    pub fn compare(&self, vouched: Option<LogMark>) -> Result<Option<MissingLines>, AuditError> {
        let found_now = match vouched {
            None => None,
            Some(mark) => self.without(mark.newest)?.map(|finding| MissingLines {
                position: mark.newest,
                found: Timestamp::now(),
                finding,
            }),
        };
        let known = vouched
            .into_iter()
            .flat_map(|mark| [mark.missing, mark.later]);
        let mut missing: Vec<_> = known.flatten().map(known_before).collect();
        if let Some(found_now) = &found_now {
            missing.truncate(MAX_MISSING - 1);
            missing.push(found_now.clone());
        }
        *self.comparison() = Comparison {
            done: true,
            missing,
        };
        Ok(found_now)
    }

    /// What is missing from the log and not accepted, the oldest finding first.
    pub fn missing(&self) -> Vec<MissingLines> {
        self.comparison().missing.clone()
    }

    /// The same as a text; `None` if nothing is.
    pub fn what_is_missing(&self) -> Option<String> {
        let missing = self.missing();
        let texts: Vec<_> = missing.iter().map(MissingLines::to_string).collect();
        (!texts.is_empty()).then(|| texts.join(". Besides: "))
    }

    /// An operator has looked into it and accepts the log as it is, naming the hash that is missing.
    /// What is missing besides is told on. The line about it comes first. Blocks.
    pub fn accept(&self, by: Option<Actor>, head: Digest32) -> Result<(), AuditError> {
        let missing = self
            .missing()
            .into_iter()
            .find(|missing| missing.position.head == head);
        let missing = missing.ok_or(AuditError::NotMissing { head })?;
        let LogPosition { lines, head } = missing.position;
        self.append(by, &[Event::AuditLogAccepted { lines, head }])?;
        (self.comparison().missing).retain(|missing| missing.position.head != head);
        Ok(())
    }

    /// What the log has instead of this line; nothing, if it has the line.
    fn without(&self, position: LogPosition) -> Result<Option<String>, AuditError> {
        if position.lines == 0 {
            return Ok(None);
        }
        // That the lines are a chain was checked when the log was opened.
        let mut has_it = false;
        let mut instead = None;
        Parts::open(self.path())?.each_line(|place, text| {
            let Ok(line) = serde_json::from_slice::<Line>(text) else {
                return Ok(());
            };
            if line.sequence > self.found {
                return Ok(());
            }
            // The line itself may have been taken away, with all up to it.
            has_it |= line.hash == position.head || line.previous == position.head;
            if line.sequence == position.lines {
                let place = format!("`{}`, line {}", place.path.display(), place.line);
                instead = Some((place, line.hash));
            }
            Ok(())
        })?;
        if has_it {
            return Ok(None);
        }
        let LogPosition { lines, head } = position;
        Ok(Some(match instead {
            Some((place, hash)) => format!(
                "{place} (number {lines} of the log) has the hash {hash} instead of {head}, which the \
                 physical TPM vouches for: this line or one before it was altered, or the log was \
                 made anew, while no manager ran"
            ),
            None => format!(
                "`{}` ended with the line number {last}, and the physical TPM vouches for {lines} lines, \
                 of which the last has the hash {head}: lines were cut off at the end, an older copy \
                 was put back, or the log was taken away, while no manager ran",
                self.path().display(),
                last = self.found,
            ),
        }))
    }

    fn comparison(&self) -> MutexGuard<'_, Comparison> {
        (self.comparison.lock()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl MarkedLog for AuditLog {
    fn mark(&self) -> Option<LogMark> {
        let comparison = self.comparison();
        let mut missing = comparison.missing.iter().map(|missing| MissingLog {
            position: missing.position,
            found: UnixSeconds::new(missing.found.seconds()),
        });
        comparison.done.then(|| LogMark {
            newest: self.on_disk(),
            missing: missing.next(),
            later: missing.next(),
        })
    }
}

/// What an earlier manager found. The log has the line in which it wrote that down.
fn known_before(missing: MissingLog) -> MissingLines {
    let LogPosition { lines, head } = missing.position;
    MissingLines {
        position: missing.position,
        found: Timestamp::new(missing.found.number()),
        finding: format!(
            "the audit log lacks what the physical TPM vouched for, {lines} lines of which the last has \
             the hash {head}; the line `audit-log-altered` tells what was found"
        ),
    }
}

impl fmt::Display for MissingLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (found {}). Keep a copy of all parts for whoever looks into it; afterwards, \
             `vtpmctl audit accept {}` ends this warning",
            self.finding, self.found, self.position.head
        )
    }
}
