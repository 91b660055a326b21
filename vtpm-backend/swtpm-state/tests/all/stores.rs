//! Folders and linear files as places for states.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use swtpm_state::{
    Key, KeyForm, KeyFormat, KeySize, Location, StateKind, StateStore, StoreError, StoreOptions,
};

/// A folder and a linear file in this folder.
pub(crate) fn locations(folder: &Path) -> [Location; 2] {
    [
        Location::Folder(folder.join("states")),
        Location::File(folder.join("linear")),
    ]
}

fn open(location: &Location) -> Result<StateStore, StoreError> {
    StateStore::open(location, StoreOptions::default(), None)
}

#[test]
fn parts_are_read_as_they_were_written_last() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for location in locations(folder.path()) {
        for key in [false, true] {
            let key = key.then(|| {
                Key::from_bytes(&[7; 32], KeyForm::Key(KeyFormat::Binary), KeySize::Bits256)
            });
            let mut store = StateStore::open(&location, StoreOptions::default(), key.transpose()?)?;
            // Another test that starts a program has copies of all descriptors, and so the lock, for a
            // moment.
            store.lock(500)?;
            for kind in StateKind::ALL {
                assert_eq!(store.load(kind)?, None, "{location} {kind:?}");
                for state in [&b"first"[..], b"second", &[9; 9000], b"fourth"] {
                    store.save(kind, state)?;
                    assert_eq!(store.load(kind)?.as_deref().map(Vec::as_slice), Some(state));
                }
            }
            store.remove(StateKind::Volatile)?;
            store.remove(StateKind::Volatile)?;
            assert_eq!(store.load(StateKind::Volatile)?, None);
            drop(store);
            let key = Key::from_bytes(&[7; 32], KeyForm::Key(KeyFormat::Binary), KeySize::Bits256)?;
            let mut again = StateStore::open(&location, StoreOptions::default(), Some(key))?;
            let is_read = again.load(StateKind::Permanent);
            assert_eq!(
                is_read.is_ok(),
                again.size(StateKind::Permanent)? > Some(50)
            );
            for kind in StateKind::ALL {
                again.remove(kind)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_place_has_one_user_at_a_time() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for location in locations(folder.path()) {
        let mut first = open(&location)?;
        let mut second = open(&location)?;
        first.lock(500)?;
        first.lock(0)?;
        assert!(matches!(second.lock(3), Err(StoreError::InUse { .. })));
        first.save(StateKind::Permanent, b"by the first")?;
        first.unlock()?;
        second.lock(500)?;
        let state = second.load(StateKind::Permanent)?;
        assert_eq!(
            state.as_deref().map(Vec::as_slice),
            Some(&b"by the first"[..])
        );
        drop(second);
        // A program that another test starts just now has a copy of the descriptor for a moment.
        first.lock(500)?;
    }
    Ok(())
}

#[test]
fn files_get_the_permissions_that_were_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    for location in locations(folder.path()) {
        let file = match &location {
            Location::Folder(folder) => folder.join("tpm2-00.permall"),
            Location::File(file) => file.clone(),
        };
        for (options, expected) in [
            (
                StoreOptions {
                    mode: 0o600,
                    ..StoreOptions::default()
                },
                0o600,
            ),
            (
                StoreOptions {
                    mode: 0o666,
                    force_mode: true,
                    ..StoreOptions::default()
                },
                0o666,
            ),
        ] {
            let mut store = StateStore::open(&location, options, None)?;
            store.save(StateKind::Permanent, b"state")?;
            assert_eq!(mode(&file)?, expected, "{location}");
        }
    }
    Ok(())
}

#[test]
fn what_is_no_place_is_refused_and_left_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("a file");
    fs::write(
        &file,
        "something else, which is long enough to be a directory".repeat(9),
    )?;
    let before = fs::read(&file)?;
    let link = folder.path().join("a link");
    std::os::unix::fs::symlink(&file, &link)?;
    for location in [
        Location::Folder(file.clone()),
        Location::File(file.clone()),
        Location::File(link),
        Location::File(folder.path().to_owned()),
        Location::File("/dev/null".into()),
    ] {
        assert!(open(&location).is_err(), "{location}");
    }
    let absent = StoreOptions {
        create: false,
        ..StoreOptions::default()
    };
    for location in locations(&folder.path().join("not there")) {
        assert!(StateStore::open(&location, absent, None).is_err());
    }
    assert_eq!(fs::read(&file)?, before);
    // A link in a folder is followed neither to read nor to write.
    let states = folder.path().join("states");
    let mut store = open(&Location::Folder(states.clone()))?;
    std::os::unix::fs::symlink(&file, states.join("tpm2-00.permall"))?;
    std::os::unix::fs::symlink(&file, states.join("TMP2-00.permall"))?;
    std::os::unix::fs::symlink(&file, states.join(".lock"))?;
    assert!(store.load(StateKind::Permanent).is_err());
    assert!(store.lock(0).is_err());
    store.save(StateKind::Permanent, b"state")?;
    assert_eq!(fs::read(&file)?, before);
    Ok(())
}

#[test]
fn places_are_named_as_swtpm_names_them() -> Result<()> {
    let folder = |path: &str| Location::Folder(path.into());
    for (text, expected) in [
        ("/a/b", folder("/a/b")),
        ("dir:///a/b", folder("/a/b")),
        ("dir://a", folder("a")),
        (
            "file:///dev/vg/volume",
            Location::File("/dev/vg/volume".into()),
        ),
    ] {
        assert_eq!(text.parse(), Ok(expected));
    }
    for text in ["", "dir://", "file://", "nbd://host", "://a"] {
        assert!(text.parse::<Location>().is_err(), "{text}");
    }
    Ok(())
}

#[test]
fn what_is_half_retired_is_retired_and_nothing_that_was_kept_before_is_lost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let states = folder.path().join("states");
    let location = Location::Folder(states.clone());
    let mut store = open(&location)?;
    store.save(StateKind::Permanent, b"first")?;
    // Another attempt was killed between its two steps.
    let (state, kept) = (
        states.join("tpm2-00.permall"),
        states.join("tpm2-00.permall.taken-over"),
    );
    fs::hard_link(&state, &kept)?;
    let before = fs::read(&state)?;
    store.retire("By a vRoT.")?;
    store.renew_note("By another vRoT.")?;
    let Err(StoreError::Retired { note, .. }) = store.load(StateKind::Permanent) else {
        anyhow::bail!("it is not retired");
    };
    assert_eq!(note, "By another vRoT.");
    StateStore::reinstate(&location)?;
    assert_eq!(fs::read(&state)?, before);

    fs::write(&kept, "of another TPM")?;
    assert!(matches!(
        store.retire("By a vRoT."),
        Err(StoreError::KeptBefore { .. })
    ));
    assert_eq!(fs::read(&state)?, before);
    assert_eq!(fs::read(&kept)?, b"of another TPM");
    Ok(())
}

#[test]
fn whoever_exchanges_a_folder_in_its_path_has_nothing_written_or_read_elsewhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [states, aside, elsewhere] =
        ["states", "aside", "elsewhere"].map(|name| folder.path().join(name));
    let location = Location::Folder(states.clone());
    let mut store = open(&location)?;
    store.save(StateKind::Permanent, b"the VM's")?;
    let of_another = Location::Folder(elsewhere.clone());
    open(&of_another)?.save(StateKind::Permanent, b"of another VM")?;
    let names = |folder: &Path| -> Result<usize> { Ok(fs::read_dir(folder)?.count()) };
    let before = fs::read(elsewhere.join("tpm2-00.permall"))?;

    fs::rename(&states, &aside)?;
    std::os::unix::fs::symlink(&elsewhere, &states)?;
    store.lock(500)?;
    let state = store.load(StateKind::Permanent)?;
    assert_eq!(state.as_deref().map(Vec::as_slice), Some(&b"the VM's"[..]));
    store.save(StateKind::Volatile, b"volatile")?;
    store.remove(StateKind::Volatile)?;
    store.retire("By a vRoT.")?;
    assert_eq!(names(&elsewhere)?, 1);
    assert_eq!(fs::read(elsewhere.join("tpm2-00.permall"))?, before);

    let unfollowed = StoreOptions {
        follow_link: false,
        ..StoreOptions::default()
    };
    assert!(StateStore::open(&location, unfollowed, None).is_err());
    assert!(StateStore::reinstate(&location).is_err());
    drop(store);
    StateStore::reinstate(&Location::Folder(aside))?;
    Ok(())
}
