//! Linear stores: nothing is lost whenever writing stops, and nothing is believed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use swtpm_state::{LinearError, Location, StateKind, StateStore, StoreError, StoreOptions};

fn open(path: &Path) -> Result<StateStore, StoreError> {
    StateStore::open(&Location::File(path.into()), StoreOptions::default(), None)
}

/// Each entry: where a section begins, how much of it is used, how long it is.
fn entries(file: &[u8]) -> Vec<[u32; 3]> {
    let entries = file.get(12..192).unwrap_or_default().chunks_exact(12);
    entries
        .map(|entry| {
            [0, 4, 8].map(|at| {
                let number = entry.get(at..).and_then(<[u8]>::first_chunk).copied();
                number.map_or(0, u32::from_le_bytes)
            })
        })
        .collect()
}

#[test]
fn a_part_is_never_written_over_the_last_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("linear");
    let mut store = open(&path)?;
    let mut expected = [None, None, None];
    // Sizes that grow, shrink and stay, of parts in turn.
    for round in 0_u8..120 {
        let which = usize::from(round % 3);
        let kind = *StateKind::ALL.get(which).context("three kinds")?;
        let before = fs::read(&path)?;
        let is_removed = round % 7 == 6;
        let state = vec![round; 1 + usize::from(round) * 37 % 3000];
        match is_removed {
            true => store.remove(kind)?,
            false => store.save(kind, &state)?,
        }
        if let Some(expected) = expected.get_mut(which) {
            *expected = (!is_removed).then_some(state);
        }
        // All that counted before is there as it was: a loss of power before the directory is
        // written has lost nothing.
        let after = fs::read(&path)?;
        for [offset, used, _] in entries(&before).into_iter().take(3) {
            let range = usize::try_from(offset)?..usize::try_from(offset + used)?;
            assert_eq!(before.get(range.clone()), after.get(range), "round {round}");
        }
        // swtpm knows no gaps, and maps the whole of a section.
        let mut sections: Vec<_> = entries(&after);
        sections.retain(|[offset, _, _]| *offset != 0);
        sections.sort_unstable();
        let mut end = 192;
        for [offset, used, length] in sections {
            assert_eq!(offset, end, "round {round}");
            assert!(used <= length);
            end += length;
        }
        assert!(u32::try_from(after.len())? >= end);
        let again = open(&path)?;
        for (kind, expected) in StateKind::ALL.into_iter().zip(&expected) {
            let state = again.load(kind)?;
            assert_eq!(state.as_deref(), expected.as_ref(), "round {round}");
        }
    }
    assert!(
        fs::metadata(&path)?.len() < 40_000,
        "it does not grow for ever"
    );
    Ok(())
}

#[test]
fn impossible_directories_are_refused_and_left_as_they_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("linear");
    let mut store = open(&path)?;
    for kind in StateKind::ALL {
        store.save(kind, &[1; 100])?;
    }
    drop(store);
    let good = fs::read(&path)?;
    let max = u32::MAX.to_le_bytes();
    let [first, second, _] = [12, 24, 36];
    let cases: [(usize, &[u8]); 10] = [
        (8, &[2]),
        (10, &[193]),
        (first, &[12, 0]),
        (first, &max),
        (first + 4, &max),
        (first + 8, &max),
        (first + 8, &[1, 0]),
        (second, &192_u32.to_le_bytes()),
        (second, &0x00ff_0000_u32.to_le_bytes()),
        (12 + 14 * 12, &200_u32.to_le_bytes()),
    ];
    for (at, bytes) in cases {
        let mut damaged = good.clone();
        let place = damaged.get_mut(at..at + bytes.len()).context("within")?;
        place.copy_from_slice(bytes);
        fs::write(&path, &damaged)?;
        assert!(
            matches!(open(&path), Err(StoreError::Linear { .. })),
            "{bytes:?} at {at}"
        );
        assert_eq!(fs::read(&path)?, damaged);
    }
    fs::write(&path, good.get(..100).context("longer")?)?;
    assert!(open(&path).is_err());
    Ok(())
}

#[test]
fn only_what_is_blank_becomes_a_store() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("linear");
    // As a new volume has it.
    fs::write(&path, vec![0; 4096])?;
    let only_read = StoreOptions {
        create: false,
        ..StoreOptions::default()
    };
    let location = Location::File(path.clone());
    let blank = StateStore::open(&location, only_read, None);
    assert!(matches!(
        blank,
        Err(StoreError::Linear {
            source: LinearError::Blank,
            ..
        })
    ));
    open(&path)?.save(StateKind::Permanent, b"state")?;
    assert_eq!(fs::metadata(&path)?.len(), 4096, "as long as it was");
    StateStore::open(&location, only_read, None)?;
    Ok(())
}
