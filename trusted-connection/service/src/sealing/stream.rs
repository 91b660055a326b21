//! The data of a sealed file: AES-256-GCM in parts, read and written one after the other.
//!
//! The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", 2015): a part's nonce is its number and whether it is the last. So parts
//! that were left out, repeated, exchanged or cut off are noticed, and no part is given out that was not
//! sealed. Each file has a key of its own, so no nonce is used twice.

use std::fmt;
use std::io::{self, Read, Write};

use cert_chain::Digest32;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::SealError;

/// The key of one file.
pub struct ContentKey(Zeroizing<[u8; KEY_LENGTH]>);

/// Bytes of data in a part; the last has fewer.
pub const CHUNK: usize = 64 * 1024;
/// Bytes that authenticate a part.
pub const TAG: usize = 16;
/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;
/// So many parts may one key seal (NIST SP 800-38D §8.3: 2^32 invocations).
const MAX_PARTS: u64 = 1 << 32;

impl ContentKey {
    /// A new key.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        SystemRandom::new()
            .fill(&mut *key)
            .map_err(|_| SealError::Random)?;
        Ok(Self(key))
    }

    /// A key that was kept.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        if bytes.len() != key.len() {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    /// For the TPM.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &*self.0
    }

    fn cipher(&self) -> LessSafeKey {
        match UnboundKey::new(&AES_256_GCM, &*self.0) {
            Ok(key) => LessSafeKey::new(key),
            Err(_) => unreachable!("the key has the cipher's length"),
        }
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey")
    }
}

/// Seals all of `input`. `header` is the digest of what stands before the data.
pub fn seal(
    key: &ContentKey,
    header: &Digest32,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), SealError> {
    let cipher = key.cipher();
    let mut current = part(input, CHUNK)?;
    for number in 0..MAX_PARTS {
        // A part is the last one if nothing follows; what is shorter than a part is followed by nothing.
        let next = match current.len() {
            CHUNK => part(input, CHUNK)?,
            _ => Zeroizing::default(),
        };
        let is_last = next.is_empty();
        let tag = cipher
            .seal_in_place_separate_tag(nonce(number, is_last), aad(header), &mut current)
            .map_err(|_| SealError::TooLong)?;
        output.write_all(&current).map_err(SealError::Write)?;
        output.write_all(tag.as_ref()).map_err(SealError::Write)?;
        if is_last {
            return Ok(());
        }
        current = next;
    }
    Err(SealError::TooLong)
}

/// Opens what [`seal`] made. Data are written as they are found genuine; only when this returns was nothing
/// cut off at the end.
pub fn open(
    key: &ContentKey,
    header: &Digest32,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), SealError> {
    let cipher = key.cipher();
    let mut current = part(input, CHUNK + TAG)?;
    for number in 0..MAX_PARTS {
        let next = match current.len() {
            WHOLE => part(input, CHUNK + TAG)?,
            _ => Zeroizing::default(),
        };
        let is_last = next.is_empty();
        let data = cipher
            .open_in_place(nonce(number, is_last), aad(header), &mut current)
            .map_err(|_| SealError::Altered { part: number })?;
        output.write_all(data).map_err(SealError::Write)?;
        if is_last {
            return Ok(());
        }
        current = next;
    }
    Err(SealError::TooLong)
}

const WHOLE: usize = CHUNK + TAG;

/// The next so many bytes, or fewer at the end.
fn part(input: &mut impl Read, length: usize) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SealError::Read(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    let [high @ .., last] = &mut nonce;
    *last = u8::from(is_last);
    let (_, place) = high.split_at_mut(NONCE_LEN - 1 - 8);
    place.copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn aad(header: &Digest32) -> Aad<&[u8]> {
    Aad::from(header.as_bytes().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ContentKey {
        ContentKey(Zeroizing::new([7; KEY_LENGTH]))
    }

    fn header() -> Digest32 {
        Digest32::of(b"header")
    }

    fn sealed(data: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::new();
        seal(&key(), &header(), &mut &*data, &mut out)?;
        Ok(out)
    }

    fn opened(sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::new();
        open(&key(), &header(), &mut &*sealed, &mut out)?;
        Ok(out)
    }

    fn data(length: usize) -> Vec<u8> {
        (0..length).map(|n| n.to_le_bytes()[0]).collect()
    }

    #[test]
    fn data_of_any_length_come_back() -> anyhow::Result<()> {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5] {
            let sealed = sealed(&data(length))?;
            assert_eq!(opened(&sealed)?, data(length), "{length}");
            let parts = length.div_ceil(CHUNK).max(1);
            assert_eq!(sealed.len(), length + parts * TAG);
        }
        Ok(())
    }

    #[test]
    fn a_changed_byte_and_every_end_but_the_last_are_noticed() -> anyhow::Result<()> {
        let sealed = sealed(&data(2 * CHUNK))?;
        for position in (0..sealed.len()).step_by(997).chain([sealed.len() - 1]) {
            let mut changed = sealed.clone();
            if let Some(byte) = changed.get_mut(position) {
                *byte ^= 1;
            }
            assert!(opened(&changed).is_err(), "{position}");
        }
        // At the end of a part, too.
        for length in [0, 1, TAG, WHOLE - 1, WHOLE, WHOLE + 1, sealed.len() - 1] {
            let cut = sealed.get(..length).unwrap_or_default();
            assert!(opened(cut).is_err(), "{length}");
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert!(opened(&longer).is_err());
        Ok(())
    }

    #[test]
    fn parts_that_were_exchanged_repeated_or_left_out_are_noticed() -> anyhow::Result<()> {
        let sealed = sealed(&data(4 * CHUNK))?;
        let parts: Vec<&[u8]> = sealed.chunks(WHOLE).collect();
        for order in [
            &[1, 0, 2, 3][..],
            &[0, 0, 2, 3],
            &[0, 2, 3],
            &[0, 1, 3],
            &[0, 1, 2, 2, 3],
            &[3],
            &[0, 1, 2, 3, 3],
        ] {
            let other: Vec<&[u8]> = order
                .iter()
                .filter_map(|n| parts.get(*n).copied())
                .collect();
            assert!(opened(&other.concat()).is_err(), "{order:?}");
        }
        Ok(())
    }

    #[test]
    fn another_beginning_of_the_file_and_another_key_open_nothing() -> anyhow::Result<()> {
        let sealed = sealed(b"secret")?;
        let mut out = Vec::new();
        let other = Digest32::of(b"another");
        assert!(open(&key(), &other, &mut sealed.as_slice(), &mut out).is_err());
        let other = ContentKey(Zeroizing::new([8; KEY_LENGTH]));
        assert!(open(&other, &header(), &mut sealed.as_slice(), &mut out).is_err());
        assert!(out.is_empty());
        assert_eq!(format!("{other:?}"), "ContentKey");
        Ok(())
    }
}
