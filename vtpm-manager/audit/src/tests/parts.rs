//! The log in parts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use api_types::audit::{Known, LogError, Parts, Verified, verify};
use cert_chain::{Digest32, VmId, VrotId};
use tempfile::TempDir;

use crate::rotation::Rotation;
use crate::{AuditError, AuditLog, Event, Layout};

/// Each part holds one line.
const SMALL: Layout = Layout {
    from: None,
    part_bytes: 1,
};

struct Log {
    folder: TempDir,
    vrots: Vec<VrotId>,
}

impl Log {
    /// Each part tells of one deletion.
    fn of(parts: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut log = Self {
            folder,
            vrots: vec![],
        };
        let open = log.open()?;
        for _ in 0..parts {
            log.delete(&open)?;
        }
        Ok(log)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn part(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("audit-{number:08}.jsonl"))
    }

    fn open(&self) -> Result<AuditLog, AuditError> {
        AuditLog::open(&self.path(), SMALL)
    }

    fn delete(&mut self, log: &AuditLog) -> anyhow::Result<()> {
        let vrot = VrotId::random();
        let deleted = Event::VrotDeleted {
            vrot,
            vm: VmId::random(),
            tenant: "acme".parse()?,
            deleted_at: api_types::Timestamp::now(),
        };
        log.append(None, &[deleted])?;
        self.vrots.push(vrot);
        Ok(())
    }

    fn verify(&self) -> Result<Verified, LogError> {
        verify(&self.path(), Known::default())
    }

    /// Nothing of what was told is lost, and it goes on.
    fn goes_on(&mut self) -> anyhow::Result<()> {
        let log = self.open()?;
        self.delete(&log)?;
        self.delete(&log)?;
        self.is_whole(&log)
    }

    fn is_whole(&self, log: &AuditLog) -> anyhow::Result<()> {
        let verified = self.verify()?;
        assert_eq!(verified, log.end());
        assert_eq!(verified.entries, self.vrots.len() as u64);
        assert_eq!(log.deleted()?, self.vrots.iter().copied().collect());
        Ok(())
    }

    /// Neither `vtpmctl` nor the manager takes the log as it is, and both name this part.
    fn is_refused_for(&self, part: &Path) {
        let name = part.file_name().unwrap_or_default().to_string_lossy();
        let refusals = [
            self.verify().err().map(|error| error.to_string()),
            self.open().err().map(|error| error.to_string()),
        ];
        for refusal in refusals {
            let said = refusal.unwrap_or_default();
            assert!(said.contains(&*name), "{name}: {said:?}");
        }
    }
}

#[test]
fn a_full_part_gets_its_number_and_the_chain_goes_on_in_the_next() -> anyhow::Result<()> {
    let mut log = Log::of(3)?;
    assert_eq!(log.verify()?.parts, 3);
    assert!(log.part(1).exists() && log.part(2).exists() && !log.part(3).exists());
    log.goes_on()?;
    assert_eq!(log.verify()?.parts, 5);
    // One after the other they are one log, as it was before there were parts.
    let mut text = Vec::new();
    for part in (1..=4).map(|number| log.part(number)).chain([log.path()]) {
        text.extend(fs::read(part)?);
    }
    let one = log.folder.path().join("one.jsonl");
    fs::write(&one, text)?;
    let verified = verify(&one, Known::default())?;
    assert_eq!((verified.parts, verified.entries), (1, 5));
    assert_eq!(verified.head, log.verify()?.head);
    let large = AuditLog::open(&one, Layout::default())?;
    log.delete(&large)?;
    assert_eq!(large.end().parts, 1, "there is room");
    Ok(())
}

#[test]
fn a_log_of_one_part_from_before_goes_on_in_parts() -> anyhow::Result<()> {
    let mut log = Log::of(0)?;
    let large = AuditLog::open(&log.path(), Layout::default())?;
    log.delete(&large)?;
    log.delete(&large)?;
    drop(large);
    log.goes_on()?;
    assert_eq!(log.verify()?.parts, 3);
    Ok(())
}

#[test]
fn a_part_that_is_missing_doubled_swapped_or_cut_is_refused_by_name() -> anyhow::Result<()> {
    type Change = fn(&Log) -> io::Result<PathBuf>;
    let changes: [(&str, Change); 11] = [
        ("the first is missing", |log| {
            fs::remove_file(log.part(1))?;
            Ok(log.part(2))
        }),
        ("one in between is missing", |log| {
            fs::remove_file(log.part(2))?;
            Ok(log.part(2))
        }),
        ("the last with a number is missing", |log| {
            fs::remove_file(log.part(3))?;
            Ok(log.path())
        }),
        ("all with a number are missing", |log| {
            for number in 1..=3 {
                fs::remove_file(log.part(number))?;
            }
            Ok(log.path())
        }),
        ("the newest is missing", |log| {
            fs::remove_file(log.path())?;
            Ok(log.path())
        }),
        ("one is doubled at the end", |log| {
            fs::copy(log.part(3), log.part(4))?;
            Ok(log.part(4))
        }),
        ("one is in the place of another, too", |log| {
            fs::copy(log.part(1), log.part(2))?;
            Ok(log.part(2))
        }),
        ("two are swapped", |log| {
            let aside = log.folder.path().join("aside");
            fs::rename(log.part(2), &aside)?;
            fs::rename(log.part(3), log.part(2))?;
            fs::rename(aside, log.part(3))?;
            Ok(log.part(2))
        }),
        ("one is cut within a line", |log| {
            let file = OpenOptions::new().write(true).open(log.part(2))?;
            file.set_len(file.metadata()?.len() - 1)?;
            Ok(log.part(2))
        }),
        ("one is cut at a line's end", |log| {
            fs::write(log.part(2), "")?;
            Ok(log.part(2))
        }),
        ("one lacks its last line", |log| {
            // Of two.
            let mut text = fs::read(log.part(2))?;
            text.extend(fs::read(log.part(3))?);
            fs::write(log.part(2), text)?;
            fs::rename(log.path(), log.part(3))?;
            fs::write(log.path(), "")?;
            assert!(log.verify().is_ok(), "the lines are all there");
            let text = fs::read_to_string(log.part(2))?;
            let one: String = text.split_inclusive('\n').take(1).collect();
            fs::write(log.part(2), one)?;
            Ok(log.part(2))
        }),
    ];
    for (what, change) in changes {
        let log = Log::of(4)?;
        let part = change(&log)?;
        println!("{what}");
        log.is_refused_for(&part);
    }
    Ok(())
}

#[test]
fn whatever_step_of_a_new_part_the_manager_is_killed_after_nothing_is_lost() -> anyhow::Result<()> {
    for steps in 0..=3 {
        for parts in 1..=2_u32 {
            let mut log = Log::of(parts as usize)?;
            let path = log.path();
            let rotation = Rotation::new(&path, parts);
            if steps >= 1 {
                rotation.make_next()?;
            }
            if steps >= 2 {
                rotation.number()?;
            }
            if steps >= 3 {
                rotation.replace()?;
            }
            let verified = log.verify()?;
            assert_eq!(verified.entries, u64::from(parts), "after step {steps}");
            log.goes_on()?;
            let expected = u64::from(parts) + 2;
            assert_eq!(log.verify()?.parts, expected, "after step {steps}");
        }
    }
    Ok(())
}

#[test]
fn a_kill_within_the_first_line_of_a_new_part_loses_nothing() -> anyhow::Result<()> {
    let mut log = Log::of(2)?;
    let path = log.path();
    let rotation = Rotation::new(&path, 2);
    let mut next = rotation.make_next()?;
    rotation.number()?;
    rotation.replace()?;
    io::Write::write_all(&mut next, b"{\"sequence\":3,\"ti")?;
    log.goes_on()
}

#[test]
fn where_a_new_part_cannot_be_made_the_present_one_goes_on_until_it_can() -> anyhow::Result<()> {
    let mut log = Log::of(2)?;
    let open = log.open()?;
    // As the first step fails on a full disk.
    let next = log.folder.path().join("audit.jsonl.new");
    fs::create_dir(&next)?;
    log.delete(&open)?;
    log.delete(&open)?;
    log.is_whole(&open)?;
    assert_eq!(open.end().parts, 2);
    fs::remove_dir(&next)?;
    // As the second one fails.
    let other = log.folder.path().join("other");
    fs::write(&other, "not of this log")?;
    fs::rename(&other, log.part(2))?;
    log.delete(&open)?;
    assert_eq!(fs::read(log.part(2))?, b"not of this log");
    log.is_refused_for(&log.part(2));
    fs::remove_file(log.part(2))?;
    log.is_whole(&open)?;
    log.delete(&open)?;
    assert_eq!(open.end().parts, 3);
    log.is_whole(&open)?;
    drop(open);
    log.goes_on()
}

#[test]
fn a_line_that_fails_in_a_new_part_leaves_the_part_empty_and_nothing_else() -> anyhow::Result<()> {
    let mut log = Log::of(1)?;
    let path = log.path();
    let open = log.open()?;
    // The manager did step two and three itself, but the line did not get to the disk.
    {
        let mut end = open.lock();
        open.begin_part(&mut end);
        end.newest.file = File::open(&path)?;
    }
    assert!(log.delete(&open).is_err());
    assert_eq!(log.verify()?.entries, 1);
    open.lock().newest.file = OpenOptions::new().append(true).open(&path)?;
    log.delete(&open)?;
    log.is_whole(&open)?;
    assert_eq!(open.end().parts, 2);
    Ok(())
}

#[test]
fn parts_can_be_taken_away_by_whoever_states_their_last_hash() -> anyhow::Result<()> {
    let mut log = Log::of(2)?;
    let from = log.verify()?.head;
    log.goes_on()?;
    let newest = log.verify()?.head;
    let stated = Layout {
        from: Some(from),
        ..SMALL
    };
    let known = |from, head| verify(&log.path(), Known { from, head });
    // Nothing was taken away yet.
    assert_eq!(known(Some(from), None)?.parts, 4);
    let archive = tempfile::tempdir()?;
    let in_archive = |number: u32| archive.path().join(format!("{number}"));
    for number in 1..=2 {
        fs::rename(log.part(number), in_archive(number))?;
    }
    log.is_refused_for(&log.part(3));
    let verified = known(Some(from), Some(newest))?;
    assert_eq!((verified.parts, verified.entries), (2, 4));
    assert!(known(Some(Digest32::new([7; 32])), None).is_err());
    assert!(known(None, Some(newest)).is_err());

    let path = log.path();
    let open = AuditLog::open(&path, stated)?;
    assert_eq!(
        open.deleted()?.len(),
        2,
        "what the archive tells is not known"
    );
    log.delete(&open)?;
    assert_eq!(open.check(newest)?.entries, 5);
    assert_eq!(open.end(), open.check(newest)?);
    assert!(log.part(4).exists(), "the numbers go on");
    // All but the newest.
    let later = Layout {
        from: Some(newest),
        ..SMALL
    };
    for number in 3..=4 {
        fs::rename(log.part(number), in_archive(number))?;
    }
    drop(AuditLog::open(&path, later)?);
    // Put back, they are one log again, whatever was stated.
    for number in 1..=4 {
        fs::rename(in_archive(number), log.part(number))?;
    }
    let open = AuditLog::open(&path, later)?;
    log.is_whole(&open)?;

    // An empty newest part does not say where it goes on.
    let rotation = Rotation::new(&path, 5);
    rotation.make_next()?;
    rotation.number()?;
    rotation.replace()?;
    for number in 1..=5 {
        fs::remove_file(log.part(number))?;
    }
    assert!(matches!(
        AuditLog::open(&path, later),
        Err(AuditError::Log(LogError::Nothing { .. }))
    ));
    Ok(())
}

#[test]
fn a_log_is_read_whole_while_it_goes_on_in_new_parts() -> anyhow::Result<()> {
    let mut log = Log::of(1)?;
    let open = log.open()?;
    let path = log.path();
    let done = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !done.load(relaxed) {
                let verified = open.check(open.end().head)?;
                anyhow::ensure!(verified.entries >= last, "lines are gone");
                last = verified.entries;
                open.deleted()?;
            }
            anyhow::Ok(())
        });
        for _ in 0..100 {
            log.delete(&open)?;
        }
        done.store(true, relaxed);
        reader.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;
    assert_eq!(verify(&path, Known::default())?.parts, 101);
    log.is_whole(&open)
}

#[test]
fn parts_that_are_begun_while_somebody_looks_are_not_among_those_seen() -> anyhow::Result<()> {
    let mut log = Log::of(2)?;
    let newest = File::open(log.path())?;
    log.goes_on()?;
    log.goes_on()?;
    let parts = Parts::up_to(&log.path(), newest)?;
    assert_eq!(parts.count(), 2);
    let mut lines = Vec::new();
    parts.each_line(|_, line| {
        lines.extend_from_slice(line);
        Ok(())
    })?;
    assert_eq!(
        lines,
        [fs::read(log.part(1))?, fs::read(log.part(2))?].concat()
    );
    Ok(())
}

#[test]
fn files_beside_a_log_are_no_parts_of_it() -> anyhow::Result<()> {
    let log = Log::of(2)?;
    for name in [
        "audit-1.jsonl",
        "audit-000000003.jsonl",
        "audit-+0000003.jsonl",
        "audit-00000003.jsonl.gz",
        "audit-00000003",
        "audit-.jsonl",
        "other-00000003.jsonl",
    ] {
        fs::write(log.folder.path().join(name), "something")?;
    }
    assert_eq!(log.verify()?.parts, 2);
    Ok(())
}
