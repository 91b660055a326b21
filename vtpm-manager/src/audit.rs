//! The audit log: one JSON object a line, each with a hash over itself and the line before.
//!
//! ```text
//! {"sequence":1,"time":"…","event":"vrot-created",…,"previous":"<hash>","hash":"<hash>"}
//! ```
//!
//! Where somebody ordered it, `by_uid` is that user. `hash` is the SHA-256 value of a domain string and of the line up to `,"hash"`. A line that was
//! changed, inserted or taken out breaks the chain from there on. The chain says nothing about
//! lines cut off at the end, or about a log that was made anew as a whole. While the manager runs, it
//! knows the newest hash, and `GET /v1/audit` holds the file against that. Beyond that, keep the
//! newest hash elsewhere: `vtpmctl audit verify --head` looks for it.

mod actor;
mod event;
mod history;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cert_chain::Digest32;
use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

pub use actor::Actor;
pub use event::{Event, Words};
pub use history::{ABSENT, LastTold};

/// The log of one manager, open for appending.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    end: Mutex<End>,
}

/// A log without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Number of lines.
    pub entries: u64,
    /// Hash of the last line.
    pub head: Digest32,
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The chain is broken.
    #[error(
        "`{}`, line {line}: {problem}: the log was altered here. Keep it as it is, for whoever \
         looks into it, under another name; the manager then begins a new one",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: u64,
        /// How.
        problem: &'static str,
    },
    /// Whole lines, but not those that were written.
    #[error(
        "no line of `{}` has the hash {known}, which was the newest one: lines were cut off at the \
         end, or the log was made anew",
        path.display()
    )]
    Replaced {
        /// The file.
        path: PathBuf,
        /// The hash that is not in it.
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

const DOMAIN: &[u8] = b"vrot audit log v1\0";
/// What the first line names as previous.
const BEGINNING: Digest32 = Digest32::new([0; 32]);
const HASH_FIELD: &str = ",\"hash\":\"";
/// Longer than any line that is written here: a recovery names each vRoT of the host.
const MAX_LINE: u64 = 4 * 1024 * 1024;
/// Lines that wait for a disk: those of a start, with one for each vRoT of a large host.
const MAX_PENDING: usize = 4096;

#[derive(Debug)]
struct End {
    file: File,
    /// Set after a failed attempt that could not be taken back: how long the log was before it.
    untidy: Option<u64>,
    /// What happened while the disk took nothing, and when: the next lines.
    pending: Vec<(Timestamp, Event)>,
    entries: u64,
    head: Digest32,
}

#[derive(Serialize)]
struct Entry<'a> {
    sequence: u64,
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_uid: Option<Actor>,
    #[serde(flatten)]
    event: &'a Event,
    previous: Digest32,
}

/// What verification looks at; everything else is covered by the hash alone.
#[derive(Deserialize)]
struct Links {
    sequence: u64,
    previous: Digest32,
}

impl AuditLog {
    /// Opens a log, or begins one. A broken log is not continued: that would hide the break.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |action| {
            move |source| AuditError::File {
                path: path.to_owned(),
                action,
                source,
            }
        };
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
        let verified = verify(path)?;
        Ok(Self {
            path: path.to_owned(),
            end: Mutex::new(End {
                file,
                untidy: None,
                pending: Vec::new(),
                entries: verified.entries,
                head: verified.head,
            }),
        })
    }

    /// Appends a line for each event and returns when they are on the disk. Blocks.
    /// After a failure nothing of it is left in the log.
    pub fn append(&self, by: Option<Actor>, events: &[Event]) -> Result<(), AuditError> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        self.append_to(&mut end, by, events)
    }

    /// Appends a line for each event that has happened whether it can be written down or not.
    /// Where it cannot, the lines come before the next ones, with the time at which it happened. Blocks.
    pub fn append_or_keep(&self, events: &[Event]) -> Result<(), AuditError> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
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
        let (mut sequence, mut head) = (end.entries, end.head);
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
        end.write(text.as_bytes())
            .map_err(|source| AuditError::File {
                path: self.path.clone(),
                action: "written",
                source,
            })?;
        end.pending.clear();
        end.entries = sequence;
        end.head = head;
        Ok(())
    }

    /// What was written so far.
    pub fn end(&self) -> Verified {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        Verified {
            entries: end.entries,
            head: end.head,
        }
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl End {
    /// Writes complete lines, or nothing.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.tidy_up()?;
        let length = self.file.metadata()?.len();
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        if written.is_err() {
            // What was written may be part of a line, or a line that nobody was told of.
            self.untidy = Some(length);
            let _ = self.tidy_up();
        }
        written
    }

    /// Takes back what a failed attempt left: nothing may follow it.
    fn tidy_up(&mut self) -> io::Result<()> {
        if let Some(length) = self.untidy {
            self.file.set_len(length)?;
            self.untidy = None;
        }
        Ok(())
    }
}

/// Checks every line of a log.
pub fn verify(path: &Path) -> Result<Verified, AuditError> {
    verify_from(path, |_| {})
}

/// Checks every line of a log, and that a line with this hash is among them: what was known of the
/// log earlier is still there, and goes on.
pub fn verify_beyond(path: &Path, known: Digest32) -> Result<Verified, AuditError> {
    let mut found = known == BEGINNING;
    let verified = verify_from(path, |line| found |= line.head == known)?;
    if !found {
        return Err(AuditError::Replaced {
            path: path.to_owned(),
            known,
        });
    }
    Ok(verified)
}

fn verify_from(path: &Path, mut each: impl FnMut(&Verified)) -> Result<Verified, AuditError> {
    let failed = |source| AuditError::File {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let broken = |line, problem| AuditError::Broken {
        path: path.to_owned(),
        line,
        problem,
    };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut verified = Verified {
        entries: 0,
        head: BEGINNING,
    };
    let mut text = Vec::new();
    loop {
        text.clear();
        let number = verified.entries + 1;
        let length = io::Read::take(&mut reader, MAX_LINE)
            .read_until(b'\n', &mut text)
            .map_err(failed)?;
        if length == 0 {
            return Ok(verified);
        }
        let text = text
            .strip_suffix(b"\n")
            .ok_or_else(|| broken(number, "the line does not end"))?;
        let (body, hash) = split(text).ok_or_else(|| broken(number, "there is no hash"))?;
        if hash_of(body) != hash {
            return Err(broken(number, "the hash is not that of the line"));
        }
        let links: Links = serde_json::from_slice(text)
            .map_err(|_| broken(number, "the line is not one of an audit log"))?;
        if links.previous != verified.head {
            return Err(broken(number, "it does not continue the line before"));
        }
        if links.sequence != number {
            return Err(broken(number, "the number is not the next one"));
        }
        verified = Verified {
            entries: number,
            head: hash,
        };
        each(&verified);
    }
}

/// The line with its line feed, and its hash.
fn line(entry: &Entry<'_>) -> (String, Digest32) {
    let mut line = match serde_json::to_string(entry) {
        Ok(json) => json,
        // Strings, numbers, and maps with string keys.
        Err(error) => unreachable!("JSON: {error}"),
    };
    line.pop();
    let hash = hash_of(line.as_bytes());
    line.push_str(HASH_FIELD);
    line.push_str(&hash.to_string());
    line.push_str("\"}\n");
    (line, hash)
}

/// Splits a line into what is hashed and the hash.
fn split(line: &[u8]) -> Option<(&[u8], Digest32)> {
    let text = line.strip_suffix(b"\"}")?;
    let (rest, hash) = text.split_at_checked(text.len().checked_sub(64)?)?;
    let body = rest.strip_suffix(HASH_FIELD.as_bytes())?;
    let hash = std::str::from_utf8(hash).ok()?.parse().ok()?;
    Some((body, hash))
}

fn hash_of(body: &[u8]) -> Digest32 {
    Digest32::of(&[DOMAIN, body].concat())
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

    fn log_of(count: usize) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("audit.jsonl");
        let log = AuditLog::open(&path)?;
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
        let log = AuditLog::open(&path)?;
        assert_eq!(log.end(), verify(&path)?);
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(verify(&path)?.entries, 4);
        assert_eq!(log.end(), verify(&path)?);
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
            assert!(verify(&path).is_err(), "byte {position}");
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
            assert!(verify(&path).is_err(), "{order:?}");
            assert!(AuditLog::open(&path).is_err(), "{order:?} is not continued");
        }
        Ok(())
    }

    #[test]
    fn a_log_that_was_cut_off_or_made_anew_as_a_whole_is_told_by_a_hash_kept_elsewhere()
    -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let known = verify(&path)?.head;
        let genuine = std::fs::read_to_string(&path)?;
        AuditLog::open(&path)?.append(None, &[Event::ManagerStopped])?;
        assert_eq!(verify_beyond(&path, known)?.entries, 3);

        let cut: String = genuine.split_inclusive('\n').take(1).collect();
        std::fs::write(&path, cut)?;
        verify(&path)?;
        assert!(matches!(
            verify_beyond(&path, known),
            Err(AuditError::Replaced { .. })
        ));
        let (_other, anew) = log_of(3)?;
        verify(&anew)?;
        assert!(matches!(
            verify_beyond(&anew, known),
            Err(AuditError::Replaced { .. })
        ));
        Ok(())
    }

    #[test]
    fn what_a_failed_attempt_left_is_not_continued() -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let log = AuditLog::open(&path)?;
        let length = std::fs::metadata(&path)?.len();
        // As on a disk that became full, and of which not even the rest could be cut off.
        OpenOptions::new()
            .append(true)
            .open(&path)?
            .write_all(b"{\"sequence\":3,\"ti")?;
        log.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .untidy = Some(length);
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(verify(&path)?.entries, 3);
        Ok(())
    }

    #[test]
    fn what_happened_while_nothing_could_be_written_comes_before_the_next_line()
    -> anyhow::Result<()> {
        let (_folder, path) = log_of(1)?;
        let log = AuditLog::open(&path)?;
        let writable = {
            let mut end = log.end.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut end.file, File::open(&path)?)
        };
        let started = Event::ManagerStarted {
            manager: Digest32::new([1; 32]),
        };
        assert!(log.append_or_keep(&[started]).is_err());
        assert!(log.append(None, &[Event::ManagerStopped]).is_err());
        log.end.lock().unwrap_or_else(PoisonError::into_inner).file = writable;
        let vrot = VrotId::random();
        log.append(None, &[Event::VrotStarted { vrot }])?;
        assert_eq!(verify(&path)?.entries, 3);
        let text = std::fs::read_to_string(&path)?;
        let kept = text.lines().nth(1).unwrap_or_default();
        assert!(kept.contains("manager-started"), "{text}");
        Ok(())
    }

    #[test]
    fn a_log_knows_of_which_recoveries_and_deletions_it_tells() -> anyhow::Result<()> {
        let (_folder, path) = log_of(1)?;
        let log = AuditLog::open(&path)?;
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
        let log = AuditLog::open(&path)?;
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
        let log = AuditLog::open(&path)?;
        log.append(
            None,
            &[Event::Refused {
                uid: 1000,
                request: "\u{1}ä".repeat(5_000_000).into(),
                reason: String::new().into(),
            }],
        )?;
        assert_eq!(AuditLog::open(&path)?.end().entries, 1);
        assert!(std::fs::metadata(&path)?.len() < 8192);
        Ok(())
    }

    #[test]
    fn an_unfinished_last_line_is_removed() -> anyhow::Result<()> {
        let (_folder, path) = log_of(2)?;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(b"{\"sequence\":3,\"ti")?;
        let log = AuditLog::open(&path)?;
        assert_eq!(log.end().entries, 2);
        log.append(None, &[Event::ManagerStopped])?;
        assert_eq!(verify(&path)?.entries, 3);
        Ok(())
    }
}
