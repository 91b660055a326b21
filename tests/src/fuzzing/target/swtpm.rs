//! State in swtpm's form: files, blobs that a VMM brings, linear stores, and keys.

use std::io::Write;

use anyhow::Result;
use swtpm_state::{
    BlobKeys, Key, KeyForm, KeyFormat, KeyOptions, KeySize, Location, StateKind, StateStore,
    StoreOptions, read_blob, read_state, write_blob, write_state,
};

use super::Target;

const STATE: &[u8] = &[0x5a; 40];

fn key() -> Option<Key> {
    Key::from_bytes(&[7; 32], KeyForm::Key(KeyFormat::Binary), KeySize::Bits256).ok()
}

/// State files and migration blobs, under a key and without one. What is read is written and read
/// again.
pub(super) const STATE_FILE: Target = Target {
    name: "swtpm-state-file",
    run: |bytes| {
        let key = key();
        for key in [None, key.as_ref()] {
            if let Ok(state) = read_state(bytes, key) {
                let again = write_state(&state, key).and_then(|file| read_state(&file, key));
                assert_eq!(again, Ok(state));
            }
            for migration in [None, key] {
                let keys = BlobKeys {
                    state: key,
                    migration,
                };
                let _ = read_blob(bytes, keys, false);
                let _ = read_blob(bytes, keys, true);
            }
        }
    },
    seeds: || {
        let key = key();
        let mut seeds = Vec::new();
        for key in [None, key.as_ref()] {
            let keys = BlobKeys {
                state: key,
                migration: key,
            };
            seeds.push(write_state(STATE, key)?.to_vec());
            seeds.push(write_blob(STATE, keys, false)?.bytes.to_vec());
        }
        seeds.push([&[1, 1, 0, 10, 0, 0, 0, 0, 0, 12][..], b"v1"].concat());
        Ok(seeds)
    },
};

/// Linear stores. One that is taken keeps what it had, and takes more.
pub(super) const LINEAR_STORE: Target = Target {
    name: "swtpm-linear-store",
    run: |bytes| {
        let opened = linear(bytes).and_then(|(file, location)| {
            let options = StoreOptions {
                create: false,
                ..StoreOptions::default()
            };
            Ok((StateStore::open(&location, options, None)?, file))
        });
        let Ok((mut store, _file)) = opened else {
            return;
        };
        let before = StateKind::ALL.map(|kind| store.load_file(kind).ok());
        if store.save(StateKind::Volatile, STATE).is_err() {
            return;
        }
        let kept = store.load(StateKind::Volatile).ok().flatten();
        assert_eq!(kept.as_deref().map(Vec::as_slice), Some(STATE));
        for (kind, before) in StateKind::ALL.into_iter().zip(before) {
            if kind != StateKind::Volatile {
                assert_eq!(store.load_file(kind).ok(), before);
            }
        }
    },
    seeds: || {
        let (file, location) = linear(&[])?;
        let mut store = StateStore::open(&location, StoreOptions::default(), None)?;
        for kind in [StateKind::Permanent, StateKind::Volatile] {
            for _ in 0..3 {
                store.save(kind, STATE)?;
            }
        }
        Ok(vec![std::fs::read(file.path())?])
    },
};

/// How a key is told of, and what it is.
pub(super) const KEY: Target = Target {
    name: "swtpm-key",
    run: |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = text.parse::<KeyOptions>();
            let _ = text.parse::<Location>();
        }
        for format in [KeyFormat::Hex, KeyFormat::Binary] {
            let _ = Key::from_bytes(bytes, KeyForm::Key(format), KeySize::Bits128);
        }
    },
    seeds: || {
        Ok(vec![
            b"file=/a,mode=aes-256-cbc,format=hex,remove=true".to_vec(),
            b"pwdfd=3,kdf=sha512".to_vec(),
            b"file:///dev/volume".to_vec(),
            b"0x00112233445566778899aabbccddeeff\n".to_vec(),
        ])
    },
};

fn linear(bytes: &[u8]) -> Result<(tempfile::NamedTempFile, Location)> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(bytes)?;
    let location = Location::File(file.path().to_owned());
    Ok((file, location))
}
