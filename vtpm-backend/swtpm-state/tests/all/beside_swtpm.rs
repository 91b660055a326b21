//! swtpm itself reads what is written here, and the other way round.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use swtpm_state::{
    BlobKeys, Key, KeyForm, KeyFormat, KeySize, Location, PassphraseKdf, StateKind, StateStore,
    StoreError, StoreOptions, read_blob, write_blob,
};

use crate::stores::locations;

/// Longer than swtpm takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A key as swtpm's command line has it, and as we read it.
#[derive(Clone, Copy)]
struct Written {
    contents: &'static str,
    /// "file" or "pwdfile".
    option: &'static str,
    more: &'static str,
    form: KeyForm,
    size: KeySize,
}

const HEX_128: Written = Written {
    contents: "0x00112233445566778899aabbccddeeff\n",
    option: "file",
    more: "",
    form: KeyForm::Key(KeyFormat::Hex),
    size: KeySize::Bits128,
};
const PASSPHRASE_256: Written = Written {
    contents: "a passphrase of nine words is long enough here",
    option: "pwdfile",
    more: ",mode=aes-256-cbc",
    form: KeyForm::Passphrase(PassphraseKdf::Pbkdf2),
    size: KeySize::Bits256,
};
const HASHED_256: Written = Written {
    contents: "another passphrase\n",
    option: "pwdfile",
    more: ",mode=aes-256-cbc,kdf=sha512",
    form: KeyForm::Passphrase(PassphraseKdf::Sha512),
    size: KeySize::Bits256,
};
const BINARY_128: Written = Written {
    contents: "sixteen bytes...",
    option: "file",
    more: ",format=binary",
    form: KeyForm::Key(KeyFormat::Binary),
    size: KeySize::Bits128,
};

impl Written {
    fn key(&self) -> Result<Key> {
        Ok(Key::read(self.contents.as_bytes(), self.form, self.size)?)
    }

    /// For swtpm's command line.
    fn argument(&self, folder: &Path, name: &str) -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, self.contents)?;
        Ok(format!("{}={}{}", self.option, path.display(), self.more))
    }
}

/// Keys at both ends.
#[derive(Clone, Copy, Default)]
struct Keys {
    state: Option<Written>,
    migration: Option<Written>,
}

/// swtpm 0.7.1 cannot use a smaller migration key beside a larger state key.
const ALL: [Keys; 5] = [
    Keys {
        state: None,
        migration: None,
    },
    Keys {
        state: Some(HEX_128),
        migration: Some(PASSPHRASE_256),
    },
    Keys {
        state: Some(PASSPHRASE_256),
        migration: Some(HASHED_256),
    },
    Keys {
        state: Some(HASHED_256),
        migration: None,
    },
    Keys {
        state: Some(BINARY_128),
        migration: Some(HEX_128),
    },
];

/// An swtpm that ends with the test.
struct Swtpm {
    process: Child,
    control: PathBuf,
}

impl Swtpm {
    fn start(folder: &Path, location: &Location, keys: Keys) -> Result<Self> {
        if let Location::Folder(path) = location {
            fs::create_dir_all(path)?;
        }
        let control = folder.join("control.sock");
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(format!("backend-uri={location}"))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        for (option, key) in [("--key", keys.state), ("--migration-key", keys.migration)] {
            if let Some(key) = key {
                command.arg(option).arg(key.argument(folder, option)?);
            }
        }
        let process = command.spawn().context("swtpm is needed for this test")?;
        let mut swtpm = Self { process, control };
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&swtpm.control).is_err() {
            let end = swtpm.process.try_wait()?;
            ensure!(end.is_none() && Instant::now() < deadline, "swtpm: {end:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(swtpm)
    }

    fn ask(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("swtpm_ioctl")
            .arg("--unix")
            .arg(&self.control)
            .args(arguments)
            .output()
            .context("swtpm_ioctl is needed for this test")?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(())
    }

    /// What a VMM would carry.
    fn blob(&self, folder: &Path) -> Result<Vec<u8>> {
        let path = folder.join("blob");
        let _ = fs::remove_file(&path);
        self.ask(&["--save", "permanent", &path.display().to_string()])?;
        Ok(fs::read(&path)?)
    }

    /// Switches its TPM off, and ends.
    fn end(mut self) -> Result<()> {
        self.ask(&["-s"])?;
        self.process.wait()?;
        fs::remove_file(&self.control).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        Ok(())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn open(location: &Location, key: Option<Written>) -> Result<StateStore> {
    let key = key.map(|key| key.key()).transpose()?;
    Ok(StateStore::open(location, StoreOptions::default(), key)?)
}

/// Its seeds and proofs are the same; swtpm counts starts.
fn assert_same_tpm(one: &[u8], other: &[u8]) -> Result<()> {
    ensure!(one.len() == other.len(), "a state of another length");
    let differing = one.iter().zip(other).filter(|(one, other)| one != other);
    let differing = differing.count();
    ensure!(differing < 64, "{differing} bytes differ: another TPM");
    Ok(())
}

#[test]
fn swtpm_s_states_are_read_and_ours_are_read_by_swtpm() -> Result<()> {
    for keys in ALL {
        let folder = tempfile::tempdir()?;
        for location in locations(folder.path()) {
            let swtpm = Swtpm::start(folder.path(), &location, keys)?;
            swtpm.ask(&["-i"])?;
            let carried = swtpm.blob(folder.path())?;
            swtpm.end()?;
            let mut store = open(&location, keys.state)?;
            store.lock(100)?;
            let state = store
                .load(StateKind::Permanent)?
                .context("swtpm wrote it")?;
            // The same came out of it for a VMM.
            let (state_key, migration_key) = (
                keys.state.map(|key| key.key()).transpose()?,
                keys.migration.map(|key| key.key()).transpose()?,
            );
            let ours = BlobKeys {
                state: state_key.as_ref(),
                migration: migration_key.as_ref(),
            };
            assert_eq!(read_blob(&carried, ours, false)?, state, "{location}");
            // Written by us, in place of swtpm's, a few times; and once more by swtpm.
            for _ in 0..3 {
                store.save(StateKind::Permanent, &state)?;
                store.save(StateKind::Volatile, b"not for long")?;
                store.remove(StateKind::Volatile)?;
            }
            // swtpm does not wait, and another test that starts a program has a copy of the lock for a
            // moment.
            store.unlock()?;
            drop(store);
            let swtpm = Swtpm::start(folder.path(), &location, keys)?;
            swtpm.ask(&["-i"])?;
            let again = read_blob(&swtpm.blob(folder.path())?, ours, false)?;
            swtpm.end()?;
            assert_same_tpm(&again, &state)?;
            // From our blob.
            let blob = write_blob(&state, ours, false)?;
            let path = folder.path().join("ours");
            fs::write(&path, &blob.bytes)?;
            let elsewhere = tempfile::tempdir()?;
            let place = Location::Folder(elsewhere.path().join("states"));
            let swtpm = Swtpm::start(elsewhere.path(), &place, keys)?;
            swtpm.ask(&["--load", "permanent", &path.display().to_string()])?;
            swtpm.ask(&["-i"])?;
            let taken = read_blob(&swtpm.blob(elsewhere.path())?, ours, false)?;
            assert_same_tpm(&taken, &state)?;
        }
    }
    Ok(())
}

#[test]
fn swtpm_starts_nothing_and_makes_nothing_new_where_a_state_was_taken_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for location in locations(folder.path()) {
        let swtpm = Swtpm::start(folder.path(), &location, Keys::default())?;
        swtpm.ask(&["-i"])?;
        swtpm.end()?;
        let mut store = open(&location, None)?;
        store.lock(100)?;
        let state = store
            .load(StateKind::Permanent)?
            .context("swtpm wrote it")?;
        store.retire("By vRoT 1 of host 2.")?;
        drop(store);
        // swtpm ends at once, or at CMD_INIT; and we do not open it either.
        let started = Swtpm::start(folder.path(), &location, Keys::default());
        ensure!(started.is_err() || started.is_ok_and(|swtpm| swtpm.ask(&["-i"]).is_err()));
        let _ = fs::remove_file(folder.path().join("control.sock"));
        let store = open(&location, None).and_then(|store| Ok(store.load(StateKind::Permanent)?));
        let refused = format!("{:#}", store.err().context("it is read")?);
        ensure!(
            refused.contains("taken over") || refused.contains("By vRoT 1"),
            "{refused}"
        );
        StateStore::reinstate(&location)?;
        assert!(StateStore::reinstate(&location).is_err());
        let store = open(&location, None)?;
        assert_eq!(store.load(StateKind::Permanent)?, Some(state));
    }
    Ok(())
}

#[test]
fn swtpm_and_we_exclude_each_other() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let location = Location::Folder(folder.path().join("states"));
    let swtpm = Swtpm::start(folder.path(), &location, Keys::default())?;
    swtpm.ask(&["-i"])?;
    let mut store = open(&location, None)?;
    assert!(matches!(store.lock(2), Err(StoreError::InUse { .. })));
    swtpm.end()?;
    store.lock(100)?;
    let swtpm = Swtpm::start(folder.path(), &location, Keys::default())?;
    ensure!(swtpm.ask(&["-i"]).is_err(), "swtpm uses what is in use");
    drop(store);
    Ok(())
}
