//! What breaks the chain, and what is left after failures.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use api_types::audit::{Known, LogError, Verified, verify};
use cert_chain::{Digest32, VrotId};

use super::{log_of, open};
use crate::Event;

fn whole(path: &Path) -> Result<Verified, LogError> {
    verify(path, Known::default())
}

fn beyond(path: &Path, head: Digest32) -> Result<Verified, LogError> {
    let known = Known {
        from: None,
        head: Some(head),
    };
    verify(path, known)
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
        Err(LogError::Replaced { .. })
    ));
    let (_other, anew) = log_of(3)?;
    whole(&anew)?;
    assert!(matches!(
        beyond(&anew, known),
        Err(LogError::Replaced { .. })
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
    log.lock().newest.untidy = true;
    log.append(None, &[Event::ManagerStopped])?;
    assert_eq!(whole(&path)?.entries, 3);
    Ok(())
}

#[test]
fn what_happened_while_nothing_could_be_written_comes_before_the_next_line() -> anyhow::Result<()> {
    let (_folder, path) = log_of(1)?;
    let log = open(&path)?;
    let writable = {
        let mut end = log.lock();
        std::mem::replace(&mut end.newest.file, File::open(&path)?)
    };
    let started = Event::ManagerStarted {
        manager: Digest32::new([1; 32]),
    };
    assert!(log.append_or_keep(&[started]).is_err());
    assert!(log.append(None, &[Event::ManagerStopped]).is_err());
    log.lock().newest.file = writable;
    let vrot = VrotId::random();
    log.append(None, &[Event::VrotStarted { vrot }])?;
    assert_eq!(whole(&path)?.entries, 3);
    let text = std::fs::read_to_string(&path)?;
    let kept = text.lines().nth(1).unwrap_or_default();
    assert!(kept.contains("manager-started"), "{text}");
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
