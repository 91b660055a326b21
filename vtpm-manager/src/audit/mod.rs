//! The audit log: one JSON object a line, each with a hash over itself and the line before.
//!
//! ```text
//! {"sequence":1,"time":"…","event":"vrot-created",…,"previous":"<hash>","hash":"<hash>"}
//! ```
//!
//! Where somebody ordered it, `by_uid` is that user. `hash` is the SHA-256 value of a domain string
//! and of the line up to `,"hash"`. A line that was changed, inserted or taken out breaks the chain
//! from there on. The chain says nothing about lines cut off at the end, or about a log that was
//! made anew as a whole. While the manager runs, it knows the newest hash, and `GET /v1/audit` holds
//! the log against that. Beyond that, keep the newest hash elsewhere: `vtpmctl audit verify --head`
//! looks for it.
//!
//! The log is in parts of [`PART_BYTES`]: the chain goes on from the last line of one to the first
//! of the next. Strung together in their order they are one log. Nothing removes a part: an
//! operator who does states the hash of the last line that was taken away.

mod actor;
mod chain;
mod event;
mod history;
mod parts;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api_types::Timestamp;
use cert_chain::Digest32;
use durable_file::sync_folder_of;

use self::chain::{Entry, line};
use self::parts::{Parts, Rotation};

pub use actor::Actor;
pub use chain::{Known, Verified, verify};
pub use event::{Event, Words};
pub use history::{ABSENT, LastTold};

/// The log of one manager, open for appending.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    layout: Layout,
    end: Mutex<End>,
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

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Two parts that do not belong together.
    #[error(
        "`{}` does not continue `{}`: lines were cut off there, or one of the two is not the part \
         that belongs here. Keep all parts as they are, for whoever looks into it, in another \
         folder; the manager then begins a new log",
        path.display(), before.display()
    )]
    Apart {
        /// The later part.
        path: PathBuf,
        /// The one before.
        before: PathBuf,
    },
    /// It begins behind lines that are not there.
    #[error(
        "`{}` goes on from a line with the hash {after}, which is in no part before it{}: put the \
         parts back that were taken away or, if you archived and checked them, state their last \
         hash with `audit_begins_after` in the manager's configuration, and with --from",
        path.display(),
        stated.map_or_else(String::new, |stated| format!(
            ", and the hash that was stated as the beginning, {stated}, is in no part at all"
        ))
    )]
    Begins {
        /// The first part.
        path: PathBuf,
        /// What its first line names as previous; zeros, if it is the first of all.
        after: Digest32,
        /// What somebody said the log goes on from.
        stated: Option<Digest32>,
    },
    /// The chain is broken.
    #[error(
        "`{}`, line {line}: {problem}: the log was altered here. Keep all its parts as they are, \
         for whoever looks into it, in another folder; the manager then begins a new log",
        path.display()
    )]
    Broken {
        /// The part.
        path: PathBuf,
        /// Counted from one in its part.
        line: u64,
        /// How.
        problem: &'static str,
    },
    /// A part is not there.
    #[error(
        "the part `{}` of the audit log is missing, though `{}` is there: put it back",
        path.display(), beside.display()
    )]
    Missing {
        /// It.
        path: PathBuf,
        /// One that is there.
        beside: PathBuf,
    },
    /// There is no line that goes on from what was taken away.
    #[error(
        "`{}` has no line, and the parts before it were taken away: put the last of them back",
        path.display()
    )]
    Nothing {
        /// The newest part.
        path: PathBuf,
    },
    /// Whole lines, but not those that were written.
    #[error(
        "no line of `{}` has the hash {known}, which was the newest one: lines were cut off at the \
         end, or the log was made anew",
        path.display()
    )]
    Replaced {
        /// The newest part.
        path: PathBuf,
        /// The hash that is not in any.
        known: Digest32,
    },
    /// A line that is not written.
    #[error("a line of {length} bytes is too long for the audit log: the limit is {MAX_LINE}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// The file cannot be used.
    #[error("the audit log `{}` cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What a part holds: some 50,000 lines.
pub const PART_BYTES: u64 = 16 * 1024 * 1024;
/// Longer than any line that is written here: a recovery names each vRoT of the host.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// Lines that wait for a disk: those of a start, with one for each vRoT of a large host.
const MAX_PENDING: usize = 4096;

#[derive(Debug)]
struct End {
    /// The newest part.
    file: File,
    /// How long it is, as far as it was told to anybody.
    length: u64,
    /// The number that it gets when it is full.
    number: u32,
    /// Set after a failed attempt that could not be taken back: there is more than `length` in it.
    untidy: bool,
    /// The name of the newest part may not be on the disk yet.
    new_name: bool,
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
        match Parts::open(path) {
            // A new log. That of older parts has a newest one at any time.
            Err(AuditError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("opened"))?;
        let unfinished = cut_unfinished_line(&mut file).map_err(failed("repaired"))?;
        if unfinished > 0 {
            tracing::warn!(
                bytes = unfinished,
                "the audit log ended in an unfinished line, of which nobody was told; it is removed"
            );
        }
        let known = Known {
            from: layout.from,
            head: None,
        };
        let verified = verify(path, known)?;
        Ok(Self {
            path: path.to_owned(),
            layout,
            end: Mutex::new(End {
                length: file.metadata().map_err(failed("read"))?.len(),
                file,
                number: Parts::open(path)?.next_number(),
                untidy: false,
                new_name: true,
                pending: Vec::new(),
                verified,
            }),
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
        for (time, by_uid, event) in pending.chain(events.iter().map(|event| (now, by, event))) {
            sequence += 1;
            let (line, hash) = line(&Entry {
                sequence,
                time,
                by_uid,
                event,
                previous: head,
            });
            if line.len() as u64 > MAX_LINE {
                return Err(AuditError::TooLong { length: line.len() });
            }
            text.push_str(&line);
            head = hash;
        }
        let bytes = text.len() as u64;
        if end.length > 0 && end.length.saturating_add(bytes) > self.layout.part_bytes {
            self.begin_part(end);
        }
        end.write(&self.path, text.as_bytes())
            .map_err(|source| AuditError::File {
                path: self.path.clone(),
                action: "written",
                source,
            })?;
        end.pending.clear();
        end.verified.entries = sequence;
        end.verified.head = head;
        end.verified.bytes += bytes;
        Ok(())
    }

    /// Where there can be no new part, the present one goes on.
    fn begin_part(&self, end: &mut End) {
        let rotation = Rotation::new(&self.path, end.number);
        let begun = end.tidy_up().and_then(|()| {
            let next = rotation.make_next()?;
            rotation.number()?;
            rotation.replace()?;
            Ok(next)
        });
        match begun {
            Ok(next) => {
                end.file = next;
                end.length = 0;
                end.number = end.number.saturating_add(1);
                end.new_name = true;
                end.verified.parts += 1;
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                path = %self.path.display(),
                "the audit log cannot begin a new part: the present one goes on"
            ),
        }
    }

    /// What was written so far.
    pub fn end(&self) -> Verified {
        self.lock().verified
    }

    /// Checks every line, and that one of them has this hash, which was the newest. Blocks.
    pub fn check(&self, head: Digest32) -> Result<Verified, AuditError> {
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

    fn lock(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    /// Writes complete lines, or nothing.
    fn write(&mut self, path: &Path, lines: &[u8]) -> io::Result<()> {
        self.tidy_up()?;
        if self.new_name {
            sync_folder_of(path)?;
            self.new_name = false;
        }
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.length += lines.len() as u64,
            Err(_) => {
                // What was written may be part of a line, or a line that nobody was told of.
                self.untidy = true;
                let _ = self.tidy_up();
            }
        }
        written
    }

    /// Takes back what a failed attempt left: nothing may follow it.
    fn tidy_up(&mut self) -> io::Result<()> {
        if self.untidy {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.min(self.length))?;
            self.untidy = false;
        }
        Ok(())
    }
}

/// A crash can leave part of a line, whose event was not acknowledged to anybody.
fn cut_unfinished_line(file: &mut File) -> io::Result<u64> {
    use std::io::{Read, Seek, SeekFrom};
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MAX_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut tail)?;
    let finished = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(position) => start + position as u64 + 1,
        None => start,
    };
    if finished < length {
        file.set_len(finished)?;
        file.sync_all()?;
    }
    Ok(length - finished)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cert_chain::{Generation, VmId, VrotId};

    use super::*;
    use crate::rollback::{Boot, RecoveryRecord};

    fn open(path: &Path) -> Result<AuditLog, AuditError> {
        AuditLog::open(path, Layout::default())
    }

    fn whole(path: &Path) -> Result<Verified, AuditError> {
        verify(path, Known::default())
    }

    fn beyond(path: &Path, head: Digest32) -> Result<Verified, AuditError> {
        let known = Known {
            from: None,
            head: Some(head),
        };
        verify(path, known)
    }

    fn log_of(count: usize) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("audit.jsonl");
        let log = open(&path)?;
        for _ in 0..count {
            log.append(
                None,
                &[Event::VrotStarted {
                    vrot: VrotId::random(),
                }],
            )?;
        }
        Ok((folder, path))
    }

    #[test]
    fn a_log_goes_on_where_it_ended() -> anyhow::Result<()> {
        let (_folder, path) = log_of(3)?;
        let log = open(&path)?;
        assert_eq!(log.end(), whole(&path)?);
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(whole(&path)?.entries, 4);
        assert_eq!(log.end(), whole(&path)?);
        Ok(())
    }

    #[test]
    fn no_byte_of_a_log_can_change() -> anyhow::Result<()> {
        let (_folder, path) = log_of(3)?;
        let genuine = std::fs::read(&path)?;
        for position in 0..genuine.len() {
            let mut changed = genuine.clone();
            if let Some(byte) = changed.get_mut(position) {
                *byte ^= 1;
            }
            std::fs::write(&path, changed)?;
            assert!(whole(&path).is_err(), "byte {position}");
        }
        Ok(())
    }

    #[test]
    fn no_line_can_be_taken_out_doubled_or_swapped() -> anyhow::Result<()> {
        let (_folder, path) = log_of(3)?;
        let text = std::fs::read_to_string(&path)?;
        let lines: Vec<&str> = text.lines().collect();
        for order in [
            vec![1, 2],
            vec![0, 2],
            vec![0, 0, 1, 2],
            vec![1, 0, 2],
            vec![0, 2, 1],
        ] {
            let changed: String = order
                .iter()
                .filter_map(|index| lines.get(*index))
                .map(|line| format!("{line}\n"))
                .collect();
            std::fs::write(&path, changed)?;
            assert!(whole(&path).is_err(), "{order:?}");
            assert!(open(&path).is_err(), "{order:?} is not continued");
        }
        Ok(())
    }

    #[test]
    fn a_log_that_was_cut_off_or_made_anew_as_a_whole_is_told_by_a_hash_kept_elsewhere()
    -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let known = whole(&path)?.head;
        let genuine = std::fs::read_to_string(&path)?;
        open(&path)?.append(None, &[Event::ManagerStopped])?;
        assert_eq!(beyond(&path, known)?.entries, 3);

        let cut: String = genuine.split_inclusive('\n').take(1).collect();
        std::fs::write(&path, cut)?;
        whole(&path)?;
        assert!(matches!(
            beyond(&path, known),
            Err(AuditError::Replaced { .. })
        ));
        let (_other, anew) = log_of(3)?;
        whole(&anew)?;
        assert!(matches!(
            beyond(&anew, known),
            Err(AuditError::Replaced { .. })
        ));
        Ok(())
    }

    #[test]
    fn what_a_failed_attempt_left_is_not_continued() -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let log = open(&path)?;
        // As on a disk that became full, and of which not even the rest could be cut off.
        OpenOptions::new()
            .append(true)
            .open(&path)?
            .write_all(b"{\"sequence\":3,\"ti")?;
        log.lock().untidy = true;
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(whole(&path)?.entries, 3);
        Ok(())
    }

    #[test]
    fn what_happened_while_nothing_could_be_written_comes_before_the_next_line()
    -> anyhow::Result<()> {
        let (_folder, path) = log_of(1)?;
        let log = open(&path)?;
        let writable = {
            let mut end = log.lock();
            std::mem::replace(&mut end.file, File::open(&path)?)
        };
        let started = Event::ManagerStarted {
            manager: Digest32::new([1; 32]),
        };
        assert!(log.append_or_keep(&[started]).is_err());
        assert!(log.append(None, &[Event::ManagerStopped]).is_err());
        log.lock().file = writable;
        let vrot = VrotId::random();
        log.append(None, &[Event::VrotStarted { vrot }])?;
        assert_eq!(whole(&path)?.entries, 3);
        let text = std::fs::read_to_string(&path)?;
        let kept = text.lines().nth(1).unwrap_or_default();
        assert!(kept.contains("manager-started"), "{text}");
        Ok(())
    }

    #[test]
    fn a_log_knows_of_which_recoveries_and_deletions_it_tells() -> anyhow::Result<()> {
        let (_folder, path) = log_of(1)?;
        let log = open(&path)?;
        let recovery = RecoveryRecord {
            accepted: "restored-store",
            finding: "\"event\":\"recovery-found\"".to_owned(),
            batch: 7,
            generation: Generation::new(2),
            raised: vec![VrotId::random()],
            discarded: vec![],
            lost: vec![],
        };
        log.append(
            None,
            &[
                Event::StoreOpened {
                    batch: 5,
                    boot: Boot::Continued,
                },
                Event::StoreRecovered { recovery },
                Event::RecoveryFound {
                    batch: 9,
                    generation: Generation::new(3),
                },
            ],
        )?;
        let (vrot, vm, discarded) = (VrotId::random(), VmId::random(), VrotId::random());
        let deleted = Event::VrotDeleted {
            vrot,
            vm,
            tenant: "acme".parse()?,
            deleted_at: Timestamp::now(),
        };
        let discarded_too = Event::VrotDiscarded { vrot: discarded };
        log.append(None, &[deleted, discarded_too])?;
        assert_eq!(log.deleted()?, BTreeSet::from([vrot, discarded]));
        let numbers = [vrot.as_uuid(), vm.as_uuid(), discarded.as_uuid()];
        let told = numbers.map(|number| log.tells_of_deletion(*number).ok());
        assert_eq!(told, [true, true, false].map(Some));
        let told = [5, 7, 8, 9].map(|batch| log.tells_of_recovery(batch).ok());
        assert_eq!(told, [false, true, false, true].map(Some));
        Ok(())
    }

    #[test]
    fn the_last_line_about_a_vrot_says_how_it_is() -> anyhow::Result<()> {
        let (_folder, path) = log_of(1)?;
        let log = open(&path)?;
        let vrot = VrotId::random();
        let [made, renewed, found] = [1, 2, 3].map(|byte| Digest32::new([byte; 32]));
        let last = || anyhow::Ok(log.last_told()?.remove(&vrot).unwrap_or_default());
        let name = cert_chain::TpmName::from_bytes(&[&[0, 0x0b], &[6; 32][..]].concat())?;
        for (event, state, certificate) in [
            (
                Event::VrotManufactured {
                    vrot,
                    vik: name,
                    certificate: made,
                },
                "manufactured",
                made,
            ),
            (Event::VrotStarted { vrot }, "running", made),
            (
                Event::CertificateRenewed {
                    vrot,
                    certificate: renewed,
                },
                "running",
                renewed,
            ),
            (Event::VrotSuspended { vrot }, "suspended", renewed),
            (Event::VrotResumed { vrot }, "running", renewed),
            (
                Event::BackendEnded {
                    vrot,
                    reason: "\"event\":\"vrot-started\"".into(),
                },
                "stopped",
                renewed,
            ),
            (
                Event::VrotFound {
                    vrot,
                    state: "suspended",
                    certificate: Some(found),
                },
                "suspended",
                found,
            ),
            (Event::VrotDiscarded { vrot }, ABSENT, found),
        ] {
            log.append(None, std::slice::from_ref(&event))?;
            let expected = LastTold {
                state: state.to_owned(),
                certificate: Some(certificate),
            };
            assert_eq!(last()?, expected, "{event:?}");
        }
        Ok(())
    }

    #[test]
    fn words_from_outside_do_not_break_the_log() -> anyhow::Result<()> {
        let (_folder, path) = log_of(0)?;
        let log = open(&path)?;
        log.append(
            None,
            &[Event::Refused {
                uid: 1000,
                request: "\u{1}ä".repeat(5_000_000).into(),
                reason: String::new().into(),
            }],
        )?;
        assert_eq!(open(&path)?.end().entries, 1);
        assert!(std::fs::metadata(&path)?.len() < 8192);
        Ok(())
    }

    #[test]
    fn an_unfinished_last_line_is_removed() -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(b"{\"sequence\":3,\"ti")?;
        let log = open(&path)?;
        assert_eq!(log.end().entries, 2);
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(whole(&path)?.entries, 3);
        Ok(())
    }
}
