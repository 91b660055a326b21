//! The log against what the store says of it.

use anyhow::Context;
use api_types::Timestamp;
use cert_chain::Digest32;
use guarded_state::ledger::{LogMark, LogPosition, MarkedLog};

use super::{log_of, open};
use crate::{AuditError, AuditLog, Event, Layout, MissingLines};

/// What the store would say of this log now.
fn vouched(log: &AuditLog) -> anyhow::Result<LogMark> {
    log.mark().context("not compared")
}

fn missing_after(
    vouched: LogMark,
    log: &AuditLog,
) -> anyhow::Result<(Option<MissingLines>, LogMark)> {
    let missing = log.compare(Some(vouched))?;
    assert_eq!(
        log.missing().last().map(|it| it.position),
        missing.as_ref().map(|it| it.position)
    );
    Ok((missing, log.mark().context("compared")?))
}

#[test]
fn batches_name_no_line_before_the_log_was_held_against_the_store() -> anyhow::Result<()> {
    let (_folder, path) = log_of(3)?;
    let log = open(&path)?;
    assert_eq!(log.mark(), None);
    assert_eq!(log.compare(None)?, None);
    let mark = vouched(&log)?;
    assert_eq!((mark.newest.lines, mark.missing), (3, None));
    assert_eq!(mark.newest.head, log.end().head);
    log.append(None, &[Event::ManagerStopped])?;
    assert_eq!(vouched(&log)?.newest.lines, 4);
    Ok(())
}

#[test]
fn only_lines_after_the_one_that_is_vouched_for_may_be_missing() -> anyhow::Result<()> {
    let (_folder, path) = log_of(2)?;
    let mark = {
        let log = open(&path)?;
        log.compare(None)?;
        vouched(&log)?
    };
    // What a crash leaves: lines that came afterwards, or part of one.
    let log = open(&path)?;
    log.append(None, &[Event::ManagerStopped, Event::ManagerStopped])?;
    drop(log);
    let text = std::fs::read(&path)?;
    let ends: Vec<usize> = (text.iter().enumerate())
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    let second = *ends.get(1).context("two lines")?;
    let near_an_end = |at: &usize| *at == 0 || ends.iter().any(|end| end.abs_diff(*at) < 3);
    for end in (0..=text.len()).rev().filter(near_an_end) {
        std::fs::write(&path, text.get(..end).context("a prefix")?)?;
        let log = open(&path)?;
        let (missing, next) = missing_after(mark, &log)?;
        assert_eq!(missing.is_some(), end < second, "{end} bytes are left");
        let told = missing.map(|missing| missing.to_string());
        assert_eq!(next.missing.is_some(), told.is_some());
        if let Some(told) = told {
            assert!(told.contains(&path.display().to_string()), "{told}");
            assert!(told.contains("vouches for 2 lines"), "{told}");
            assert!(told.contains(&format!("audit accept {}", mark.newest.head)));
        }
    }
    Ok(())
}

#[test]
fn a_log_that_was_made_anew_is_told_by_the_line_that_differs() -> anyhow::Result<()> {
    let (_folder, path) = log_of(4)?;
    let log = open(&path)?;
    log.compare(None)?;
    let mark = vouched(&log)?;
    drop(log);
    // Whole, longer, in parts, and another one.
    std::fs::remove_file(&path)?;
    let parts = Layout {
        part_bytes: 1,
        ..Default::default()
    };
    let log = AuditLog::open(&path, parts)?;
    for _ in 0..6 {
        log.append(None, &[Event::ManagerStopped])?;
    }
    drop(log);
    let log = AuditLog::open(&path, parts)?;
    let missing = missing_after(mark, &log)?.0.context("unnoticed")?;
    assert_eq!(missing.position, mark.newest);
    let told = missing.to_string();
    assert!(
        told.contains("audit-00000004.jsonl`, line 1 (number 4"),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_line_that_was_taken_away_with_its_part_is_no_break() -> anyhow::Result<()> {
    let (folder, path) = log_of(0)?;
    let parts = Layout {
        part_bytes: 1,
        ..Default::default()
    };
    let log = AuditLog::open(&path, parts)?;
    log.compare(None)?;
    log.append(None, &[Event::ManagerStopped])?;
    let mark = vouched(&log)?;
    log.append(None, &[Event::ManagerStopped])?;
    drop(log);
    std::fs::remove_file(folder.path().join("audit-00000001.jsonl"))?;
    let archived = Layout {
        from: Some(mark.newest.head),
        ..parts
    };
    let log = AuditLog::open(&path, archived)?;
    assert_eq!(missing_after(mark, &log)?.0, None);
    Ok(())
}

#[test]
fn what_is_missing_is_told_by_each_manager_until_an_operator_accepts_it_by_its_hash()
-> anyhow::Result<()> {
    let (_folder, path) = log_of(2)?;
    let gone = LogPosition {
        lines: 9,
        head: Digest32::of(b"gone"),
    };
    let mark = LogMark {
        newest: gone,
        missing: None,
        later: None,
    };
    let (missing, next) = missing_after(mark, &open(&path)?)?;
    let found = missing.context("unnoticed")?.found;
    assert_eq!(next.missing.context("said")?.position, gone);

    // The next manager finds the lines that the one before wrote, and knows what was missing.
    let log = open(&path)?;
    assert_eq!(log.compare(Some(next))?, None);
    let known = log.missing().pop().context("forgotten")?;
    assert_eq!((known.position, known.found), (gone, found));
    assert!(found <= Timestamp::now());
    assert_eq!(vouched(&log)?.missing, next.missing);

    let refused = log.accept(None, Digest32::of(b"another"));
    assert!(
        matches!(refused, Err(AuditError::NotMissing { .. })),
        "{refused:?}"
    );
    assert_eq!(log.end().entries, 2);
    assert_eq!(log.missing().len(), 1);
    log.accept(None, gone.head)?;
    assert_eq!(vouched(&log)?.missing, None);
    let text = std::fs::read_to_string(&path)?;
    assert!(
        text.contains("\"event\":\"audit-log-accepted\",\"lines\":9"),
        "{text}"
    );
    assert!(log.accept(None, gone.head).is_err());
    Ok(())
}

#[test]
fn what_was_altered_before_an_operator_looked_is_not_forgotten_for_a_later_alteration()
-> anyhow::Result<()> {
    let (_folder, path) = log_of(2)?;
    let gone = ["first", "second", "third"].map(|text| LogPosition {
        lines: 9,
        head: Digest32::of(text.as_bytes()),
    });
    let [first, second, third] = gone;
    let mut mark = LogMark {
        newest: first,
        missing: None,
        later: None,
    };
    for (newest, told) in [
        (first, vec![first]),
        (second, vec![first, second]),
        // Of many, the first and the newest.
        (third, vec![first, third]),
    ] {
        mark.newest = newest;
        let log = open(&path)?;
        (_, mark) = missing_after(mark, &log)?;
        let missing: Vec<_> = log.missing().iter().map(|it| it.position).collect();
        assert_eq!(missing, told);
        let text = log.what_is_missing().context("not told")?;
        for position in told {
            let remedy = format!("audit accept {}", position.head);
            assert!(text.contains(&remedy), "{text}");
        }
    }

    // The next manager knows both, and whoever accepts one hears of the other.
    let log = open(&path)?;
    assert_eq!(log.compare(Some(mark))?, None);
    assert_eq!(log.missing().len(), 2);
    log.accept(None, first.head)?;
    let mark = vouched(&log)?;
    assert_eq!(mark.missing.map(|it| it.position), Some(third));
    assert_eq!(mark.later, None);
    assert!(log.accept(None, second.head).is_err());
    drop(log);
    let log = open(&path)?;
    assert_eq!(log.compare(Some(mark))?, None);
    log.accept(None, third.head)?;
    assert_eq!(log.what_is_missing(), None);
    assert_eq!(vouched(&log)?.missing, None);
    Ok(())
}
