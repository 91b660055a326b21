//! State files and blobs that swtpm never wrote.

use anyhow::{Context, Result};
use swtpm_state::{
    BlobKeys, FormatError, Key, KeyForm, KeyFormat, KeySize, MAX_STATE, read_blob, read_state,
    write_blob, write_state,
};

fn key(byte: u8, size: KeySize) -> Result<Key> {
    let bytes = vec![byte; size.bytes()];
    Ok(Key::from_bytes(
        &bytes,
        KeyForm::Key(KeyFormat::Binary),
        size,
    )?)
}

#[test]
fn states_of_all_lengths_come_back_under_every_key() -> Result<()> {
    let (small, large) = (key(1, KeySize::Bits128)?, key(2, KeySize::Bits256)?);
    for key in [None, Some(&small), Some(&large)] {
        for length in (0..70).chain([200 * 1024]) {
            let state: Vec<u8> = (0..=255).cycle().take(length).collect();
            let file = write_state(&state, key)?;
            assert_eq!(*read_state(&file, key)?, state);
            for migration in [None, Some(&large)] {
                let keys = BlobKeys {
                    state: key,
                    migration,
                };
                for decrypted in [false, true] {
                    let blob = write_blob(&state, keys, decrypted)?;
                    assert_eq!(blob.is_encrypted, key.is_some() && !decrypted);
                    assert_eq!(*read_blob(&blob.bytes, keys, blob.is_encrypted)?, state);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn no_changed_byte_of_an_encrypted_state_goes_unseen() -> Result<()> {
    let key = key(3, KeySize::Bits256)?;
    let keys = BlobKeys {
        state: None,
        migration: Some(&key),
    };
    let file = write_state(&[0xa5; 90], Some(&key))?;
    let blob = write_blob(&[0xa5; 90], keys, true)?.bytes;
    for position in 0..file.len().max(blob.len()) {
        for bit in [1, 0x80] {
            let altered = |whole: &[u8]| -> Option<Vec<u8>> {
                let mut altered = whole.to_vec();
                *altered.get_mut(position)? ^= bit;
                Some(altered)
            };
            // A flag that says nothing of the key, or a reader of version 0.
            let is_read_all_the_same = matches!(position, 1 | 4 | 5);
            if let Some(altered) = altered(&file) {
                let read = read_state(&altered, Some(&key));
                assert!(read.is_err() || is_read_all_the_same, "byte {position}");
            }
            if let Some(altered) = altered(&blob) {
                let read = read_blob(&altered, keys, false);
                assert!(read.is_err() || is_read_all_the_same, "byte {position}");
            }
        }
    }
    Ok(())
}

#[test]
fn whatever_is_cut_or_longer_is_refused() -> Result<()> {
    let small = key(4, KeySize::Bits128)?;
    for key in [None, Some(&small)] {
        let file = write_state(&[1; 50], key)?;
        for length in 0..file.len() {
            let cut = file.get(..length).context("it is longer")?;
            assert!(read_state(cut, key).is_err(), "{length}");
            // Also where the header announces that length.
            let mut cut = cut.to_vec();
            let announced = u32::try_from(length)?.to_be_bytes();
            if let Some(place) = cut.get_mut(6..10) {
                place.copy_from_slice(&announced);
            }
            assert!(read_state(&cut, key).is_err(), "{length}");
        }
        let longer = [&file[..], &[0]].concat();
        assert!(matches!(
            read_state(&longer, key),
            Err(FormatError::Length { .. })
        ));
    }
    let absurd = vec![0; MAX_STATE + 1];
    assert!(matches!(
        read_state(&absurd, None),
        Err(FormatError::TooLong { .. })
    ));
    assert!(write_state(&absurd, None).is_err());
    Ok(())
}

/// A file with these fields behind a header that is right.
fn file(version: [u8; 2], flags: u16, fields: &[(u16, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    for (tag, length, value) in fields {
        body.extend(tag.to_be_bytes());
        body.extend(length.to_be_bytes());
        body.extend_from_slice(value);
    }
    let length = u32::try_from(10 + body.len())?.to_be_bytes();
    Ok([&version[..], &[0, 10], &flags.to_be_bytes(), &length, &body].concat())
}

#[test]
fn fields_that_lie_are_refused_where_they_are() -> Result<()> {
    use FormatError::*;
    let data: (u16, u32, &[u8]) = (1, 2, b"ab");
    let many: Vec<_> = (100..117).map(|tag| (tag, 0, &b""[..])).collect();
    let cases: [(Vec<u8>, FormatError); 8] = [
        (
            file([2, 1], 0, &[(1, u32::MAX, b"ab")])?,
            FieldLength { offset: 10 },
        ),
        (
            file([2, 1], 0, &[data, (9, 1, b"")])?,
            FieldLength { offset: 18 },
        ),
        (
            file([2, 1], 0, &[data, data])?,
            FieldTwice { tag: 1, offset: 18 },
        ),
        (file([2, 1], 0, &many)?, TooManyFields { most: 16 }),
        (file([2, 1], 0, &[])?, FieldMissing { tag: 1 }),
        (
            file([2, 1], 1, &[(2, 2, b"ab")])?,
            KeyMissing { key: "state" },
        ),
        (
            file([3, 3], 0, &[data])?,
            Version {
                version: 3,
                minimum: 3,
            },
        ),
        (
            file([9, 1], 0, &[data])?,
            Version {
                version: 9,
                minimum: 1,
            },
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(read_state(&file, None), Err(expected), "{file:?}");
    }
    let mut file = file([2, 1], 0, &[data])?;
    assert_eq!(*read_state(&file, None)?, b"ab");
    *file.get_mut(3).context("a header")? = 11;
    assert_eq!(read_state(&file, None), Err(HeaderSize { size: 11 }));
    Ok(())
}

#[test]
fn a_key_takes_no_state_that_was_written_without_it_or_with_another_one() -> Result<()> {
    let mine = key(5, KeySize::Bits256)?;
    let other = key(6, KeySize::Bits256)?;
    let small = key(5, KeySize::Bits128)?;
    let plain = write_state(b"state", None)?;
    let file = write_state(b"state", Some(&mine))?;
    assert_eq!(
        read_state(&plain, Some(&mine)),
        Err(FormatError::NotEncrypted { key: "state" })
    );
    assert_eq!(
        read_state(&file, Some(&other)),
        Err(FormatError::NotAuthentic { key: "state" })
    );
    assert!(matches!(
        read_state(&file, Some(&small)),
        Err(FormatError::KeySize { .. })
    ));
    let blob = write_blob(b"state", BlobKeys::default(), true)?.bytes;
    let keys = BlobKeys {
        state: None,
        migration: Some(&mine),
    };
    assert_eq!(
        read_blob(&blob, keys, false),
        Err(FormatError::NotEncrypted { key: "migration" })
    );
    // A file is no blob, and a blob no file.
    assert!(read_blob(&plain, BlobKeys::default(), false).is_err());
    assert!(read_state(&blob, None).is_err());
    Ok(())
}

#[test]
fn version_1_is_read() -> Result<()> {
    // The state as it is.
    let length = u32::try_from(10 + 5)?.to_be_bytes();
    let plain = [&[1, 1, 0, 10, 0, 0][..], &length, b"state"].concat();
    assert_eq!(*read_state(&plain, None)?, b"state");
    // Under a key: SHA-256 of the state, and the state; AES-128-CBC from a vector of zeros:
    // openssl enc -aes-128-cbc -K 07..07 -iv 0, whose padding is the same for this key's length.
    let encrypted = hex::decode(VERSION_1)?;
    let length = u32::try_from(10 + encrypted.len())?.to_be_bytes();
    let mut file = [&[1, 1, 0, 10, 0, 1][..], &length, &encrypted].concat();
    let small = key(7, KeySize::Bits128)?;
    assert_eq!(*read_state(&file, Some(&small))?, b"state");
    assert!(read_state(&file, None).is_err());
    if let Some(last) = file.last_mut() {
        *last ^= 1;
    }
    assert!(read_state(&file, Some(&small)).is_err());
    Ok(())
}

const VERSION_1: &str = "427ee944a5420e400bb9dab2c420c52299d7b7cb9f16a7d604bd119a1e2e3745b44b209d6b04fb0be8efe9ff91dd0b6f";
