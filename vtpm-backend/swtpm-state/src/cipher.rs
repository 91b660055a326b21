//! AES in CBC mode and HMAC-SHA-256, both with the same key, over the encrypted bytes and the
//! initialisation vector.

use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, InnerIvInit, KeyInit};
use aes::{Aes128, Aes256};
use ring::hmac;
use zeroize::{Zeroize, Zeroizing};

use crate::KeySize;

/// What a key is used through. It is to lie in locked memory: its parts do not zero themselves.
pub(crate) struct Cipher {
    aes: Aes,
    mac: hmac::Key,
}

#[expect(
    clippy::large_enum_variant,
    reason = "a key schedule lies in locked memory, not in a box elsewhere"
)]
enum Aes {
    Bits128(Aes128),
    Bits256(Aes256),
}

/// Of AES, and of the part of an initialisation vector that is used.
pub(crate) const BLOCK: usize = 16;

impl Cipher {
    /// The first bytes of `key` are used, as many as its size says.
    pub(crate) fn new(key: &[u8; 32], size: KeySize) -> Self {
        let used = key.get(..size.bytes()).unwrap_or(key);
        Self {
            aes: match size {
                KeySize::Bits128 => Aes::Bits128(Aes128::new(GenericArray::from_slice(used))),
                KeySize::Bits256 => Aes::Bits256(Aes256::new(GenericArray::from_slice(used))),
            },
            mac: hmac::Key::new(hmac::HMAC_SHA256, used),
        }
    }

    pub(crate) fn size(&self) -> KeySize {
        match self.aes {
            Aes::Bits128(_) => KeySize::Bits128,
            Aes::Bits256(_) => KeySize::Bits256,
        }
    }

    /// The padding says its own length in each of its bytes, as in PKCS #7, but fills up to the
    /// length of the key, not of a block.
    pub(crate) fn encrypt(&self, plain: &[u8], iv: &[u8; BLOCK]) -> Zeroizing<Vec<u8>> {
        let unit = self.size().bytes();
        let padding = unit - plain.len() % unit;
        let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len() + padding));
        bytes.extend_from_slice(plain);
        bytes.resize(plain.len() + padding, u8::try_from(padding).unwrap_or(0));
        let iv = GenericArray::from_slice(iv);
        match &self.aes {
            Aes::Bits128(aes) => encrypt(cbc::Encryptor::inner_iv_init(aes, iv), &mut bytes),
            Aes::Bits256(aes) => encrypt(cbc::Encryptor::inner_iv_init(aes, iv), &mut bytes),
        }
        bytes
    }

    /// Nothing, if what comes out ends in no padding.
    pub(crate) fn decrypt(&self, bytes: &[u8], iv: &[u8; BLOCK]) -> Option<Zeroizing<Vec<u8>>> {
        let unit = self.size().bytes();
        if !bytes.len().is_multiple_of(BLOCK) || bytes.len() < unit {
            return None;
        }
        let mut plain = Zeroizing::new(bytes.to_vec());
        let iv = GenericArray::from_slice(iv);
        match &self.aes {
            Aes::Bits128(aes) => decrypt(cbc::Decryptor::inner_iv_init(aes, iv), &mut plain),
            Aes::Bits256(aes) => decrypt(cbc::Decryptor::inner_iv_init(aes, iv), &mut plain),
        }
        let last = *plain.last()?;
        let padding = usize::from(last);
        let length = plain.len().checked_sub(padding)?;
        let is_padded =
            (1..=unit).contains(&padding) && plain.get(length..)?.iter().all(|byte| *byte == last);
        if !is_padded {
            return None;
        }
        plain.truncate(length);
        Some(plain)
    }

    /// Over the encrypted bytes and the whole of the vector, also what is not used of it.
    pub(crate) fn authenticate(&self, encrypted: &[u8], iv: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(encrypted);
        context.update(iv);
        let mut tag = [0; 32];
        let signed = context.sign();
        for (to, from) in tag.iter_mut().zip(signed.as_ref()) {
            *to = *from;
        }
        tag
    }

    /// Whether `tag` begins with what [`authenticate`](Self::authenticate) gives, in constant time.
    pub(crate) fn is_authentic(&self, encrypted: &[u8], iv: &[u8], tag: &[u8]) -> bool {
        let mut expected = self.authenticate(encrypted, iv);
        let same = tag.len() == expected.len()
            && tag
                .iter()
                .zip(expected.iter())
                .fold(0, |differences, (one, other)| differences | (one ^ other))
                == 0;
        expected.zeroize();
        same
    }
}

fn encrypt(mut mode: impl BlockEncryptMut, bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        mode.encrypt_block_mut(GenericArray::from_mut_slice(block));
    }
}

fn decrypt(mut mode: impl BlockDecryptMut, bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(BLOCK) {
        mode.decrypt_block_mut(GenericArray::from_mut_slice(block));
    }
}
