//! The log of one manager.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::Timestamp;
use api_types::audit::{Entry, Known, LogError, MAX_LINE, Parts, Verified, verify, verify_parts};
use cert_chain::Digest32;
use guarded_state::ledger::LogPosition;

use super::newest_part::{NewestPart, make_first};
use super::vouched::Comparison;
use super::{Actor, AuditError, Event};

/// The log of one manager, open for appending.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    layout: Layout,
    end: Mutex<End>,
    /// The newest line that is on the disk: known also while others are being written.
    on_disk: Mutex<LogPosition>,
    pub(super) comparison: Mutex<Comparison>,
    /// How many lines there were when it was opened: earlier managers wrote them.
    pub(super) found: u64,
}

/// Where a log begins, and how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// As [`Known::from`].
    pub from: Option<Digest32>,
    /// What a part does not exceed, unless with lines that were written at once.
    pub part_bytes: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            from: None,
            part_bytes: PART_BYTES,
        }
    }
}

/// What a part holds: some 50,000 lines.
pub const PART_BYTES: u64 = 16 * 1024 * 1024;
/// Lines that wait for a disk: those of a start, with one for each vRoT of a large host.
const MAX_PENDING: usize = 4096;

#[derive(Debug)]
pub(super) struct End {
    pub(super) newest: NewestPart,
    /// What happened while the disk took nothing, and when: the next lines.
    pending: Vec<(Timestamp, Event)>,
    verified: Verified,
}

impl AuditLog {
    /// Opens a log, or begins one. A broken log is not continued: that would hide the break.
    pub fn open(path: &Path, layout: Layout) -> Result<Self, AuditError> {
        let failed = |action| {
            move |source| AuditError::File {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let parts = match Parts::open(path) {
            // A new log. That of older parts has a newest one at any time.
            Err(LogError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make_first(path).map_err(failed("made"))?;
                Parts::open(path)?
            }
            found => found?,
        };
        let newest = NewestPart::open(path, parts.next_number()).map_err(failed("opened"))?;
        let known = Known {
            from: layout.from,
            head: None,
        };
        let verified = verify_parts(parts, known)?;
        Ok(Self {
            path: path.to_owned(),
            layout,
            end: Mutex::new(End {
                newest,
                pending: Vec::new(),
                verified,
            }),
            on_disk: Mutex::new(position(&verified)),
            comparison: Mutex::default(),
            found: verified.entries,
        })
    }

    /// Appends a line for each event and returns when they are on the disk. Blocks.
    /// After a failure nothing of it is left in the log.
    pub fn append(&self, by: Option<Actor>, events: &[Event]) -> Result<(), AuditError> {
        self.append_to(&mut self.lock(), by, events)
    }

    /// Appends a line for each event that has happened whether it can be written down or not.
    /// Where it cannot, the lines come before the next ones, with the time at which it happened. Blocks.
    pub fn append_or_keep(&self, events: &[Event]) -> Result<(), AuditError> {
        let mut end = self.lock();
        self.append_to(&mut end, None, events).inspect_err(|_| {
            let now = Timestamp::now();
            let room = MAX_PENDING.saturating_sub(end.pending.len());
            let kept = events.iter().take(room).map(|event| (now, event.clone()));
            end.pending.extend(kept);
        })
    }

    fn append_to(
        &self,
        end: &mut End,
        by: Option<Actor>,
        events: &[Event],
    ) -> Result<(), AuditError> {
        let (mut sequence, mut head) = (end.verified.entries, end.verified.head);
        let mut text = String::new();
        let now = Timestamp::now();
        // What waits is what nobody ordered.
        let pending = end.pending.iter().map(|(time, event)| (*time, None, event));
        for (time, by, event) in pending.chain(events.iter().map(|event| (now, by, event))) {
            sequence += 1;
            let entry = Entry {
                sequence,
                time,
                by_uid: by.map(Actor::uid),
                event,
                previous: head,
            };
            let (line, hash) = entry.line();
            if line.len() as u64 > MAX_LINE {
                return Err(AuditError::TooLong { length: line.len() });
            }
            text.push_str(&line);
            head = hash;
        }
        let bytes = text.len() as u64;
        if !end.newest.has_room_for(bytes, self.layout.part_bytes) {
            self.begin_part(end);
        }
        let written = end.newest.write(text.as_bytes());
        written.map_err(|source| AuditError::File {
            path: self.path.clone(),
            action: "written",
            source,
        })?;
        end.pending.clear();
        end.verified.entries = sequence;
        end.verified.head = head;
        end.verified.bytes += bytes;
        *(self.on_disk.lock()).unwrap_or_else(PoisonError::into_inner) = position(&end.verified);
        Ok(())
    }

    /// Where there can be no new part, the present one goes on.
    pub(super) fn begin_part(&self, end: &mut End) {
        match end.newest.begin_next() {
            Ok(()) => end.verified.parts += 1,
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                path = %self.path.display(),
                "the audit log cannot begin a new part: the present one goes on"
            ),
        }
    }

    /// The newest line that is on the disk. Does not wait for a disk.
    pub(super) fn on_disk(&self) -> LogPosition {
        *(self.on_disk.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written so far.
    pub fn end(&self) -> Verified {
        self.lock().verified
    }

    /// Checks every line, and that one of them has this hash, which was the newest. Blocks.
    pub fn check(&self, head: Digest32) -> Result<Verified, LogError> {
        let known = Known {
            from: self.layout.from,
            head: Some(head),
        };
        verify(&self.path, known)
    }

    /// Where the newest part of the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Known::from`].
    pub fn from(&self) -> Option<Digest32> {
        self.layout.from
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn position(verified: &Verified) -> LogPosition {
    LogPosition {
        lines: verified.entries,
        head: verified.head,
    }
}
