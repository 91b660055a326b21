//! What a state is wrapped in: once in a file, twice in a migration blob.

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::cipher::BLOCK;
use crate::header::{self, Version};
use crate::tlv::{Fields, append};
use crate::{FormatError, Key, KeySize};

/// One of the two layers, by its tags and flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    /// What the key is called.
    key: &'static str,
    plain: u16,
    encrypted: u16,
    iv: u16,
    flag_encrypted: u16,
    flag_256: u16,
}

/// With the state's key, in files and in blobs.
pub(crate) const STATE: Layer = Layer {
    key: "state",
    plain: 1,
    encrypted: 2,
    iv: 6,
    flag_encrypted: header::ENCRYPTED,
    flag_256: header::ENCRYPTED_256,
};

/// With the migration's key, around that.
pub(crate) const MIGRATION: Layer = Layer {
    key: "migration",
    plain: 4,
    encrypted: 5,
    iv: 7,
    flag_encrypted: header::MIGRATION_ENCRYPTED,
    flag_256: header::MIGRATION_ENCRYPTED_256,
};

/// Of both layers.
const MAC: u16 = 3;
/// Of SHA-256.
const HASH: usize = 32;

impl Layer {
    /// Wraps: with it come the flags for the header.
    pub(crate) fn wrap(
        &self,
        inner: &[u8],
        key: Option<&Key>,
    ) -> Result<(Zeroizing<Vec<u8>>, u16), FormatError> {
        let mut fields = Zeroizing::new(Vec::new());
        let Some(key) = key else {
            append(&mut fields, self.plain, inner)?;
            return Ok((fields, 0));
        };
        let mut random = [0; 32];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| FormatError::NoRandomNumbers)?;
        // As long as the key, by the format; its beginning is used.
        let vector = random.get(..key.size().bytes()).unwrap_or(&random);
        let used = initial(vector)?;
        let (encrypted, mac) = key.with(|cipher| {
            let encrypted = cipher.encrypt(inner, &used);
            let mac = cipher.authenticate(&encrypted, vector);
            (encrypted, mac)
        });
        append(&mut fields, self.encrypted, &encrypted)?;
        append(&mut fields, MAC, &mac)?;
        append(&mut fields, self.iv, vector)?;
        let flag_256 = match key.size() {
            KeySize::Bits128 => 0,
            KeySize::Bits256 => self.flag_256,
        };
        Ok((fields, self.flag_encrypted | flag_256))
    }

    /// Unwraps what begins at `offset`. It is encrypted if and only if there is a key.
    pub(crate) fn unwrap(
        &self,
        version: Version,
        flags: u16,
        bytes: &[u8],
        offset: usize,
        key: Option<&Key>,
    ) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        match version {
            Version::One => self.unwrap_version_1(flags, bytes, key),
            Version::Two => self.unwrap_version_2(flags, &Fields::parse(bytes, offset)?, key),
        }
    }

    fn unwrap_version_1(
        &self,
        flags: u16,
        bytes: &[u8],
        key: Option<&Key>,
    ) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let name = self.key;
        let Some(key) = key else {
            return match flags & self.flag_encrypted {
                0 => Ok(Zeroizing::new(bytes.to_vec())),
                _ => Err(FormatError::KeyMissing { key: name }),
            };
        };
        let hashed = key
            .with(|cipher| cipher.decrypt(bytes, &[0; BLOCK]))
            .ok_or(FormatError::NotAuthentic { key: name })?;
        match hashed.split_first_chunk::<HASH>() {
            Some((hash, state)) if digest::digest(&digest::SHA256, state).as_ref() == hash => {
                Ok(Zeroizing::new(state.to_vec()))
            }
            _ => Err(FormatError::NotAuthentic { key: name }),
        }
    }

    fn unwrap_version_2(
        &self,
        flags: u16,
        fields: &Fields<'_>,
        key: Option<&Key>,
    ) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let name = self.key;
        let Some(key) = key else {
            return match (fields.get(self.plain), fields.get(self.encrypted)) {
                (Some(plain), None) => Ok(Zeroizing::new(plain.to_vec())),
                (_, Some(_)) => Err(FormatError::KeyMissing { key: name }),
                (None, None) => Err(FormatError::FieldMissing { tag: self.plain }),
            };
        };
        let Some(encrypted) = fields.get(self.encrypted) else {
            return Err(match fields.get(self.plain) {
                Some(_) => FormatError::NotEncrypted { key: name },
                None => FormatError::FieldMissing {
                    tag: self.encrypted,
                },
            });
        };
        let needed = match flags & self.flag_256 {
            0 => KeySize::Bits128,
            _ => KeySize::Bits256,
        };
        let given = key.size();
        if needed != given {
            return Err(FormatError::KeySize {
                key: name,
                needed,
                given,
            });
        }
        let mac = fields.require(MAC)?;
        // Early writers had none.
        let (vector, used) = match fields.get(self.iv) {
            Some(vector) => (vector, initial(vector)?),
            None => (&[][..], [0; BLOCK]),
        };
        key.with(|cipher| {
            if !cipher.is_authentic(encrypted, vector, mac) {
                return Err(FormatError::NotAuthentic { key: name });
            }
            cipher.decrypt(encrypted, &used).ok_or(FormatError::Padding)
        })
    }
}

/// The part of an initialisation vector that is used.
fn initial(vector: &[u8]) -> Result<[u8; BLOCK], FormatError> {
    let first = vector.first_chunk::<BLOCK>().copied();
    first.ok_or(FormatError::InitialisationVector {
        length: vector.len(),
    })
}
