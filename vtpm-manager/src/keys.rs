//! The keys of vRoTs, wrapped under a key derived from the host's root secret.
//!
//! Each vRoT has a random state key of its own. What the store keeps of it is worthless without
//! the root secret, which only this host's TPM unseals, and only in an approved state. Without the
//! wrapped key every copy of the vRoT's state is worthless too.

use std::fmt;

use backend_link::StateKey;
use cert_chain::VrotId;
use locked_memory::{Locked, NotLocked};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode, Encoder};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Wraps and unwraps the secrets of vRoTs. There is one only after the TPM unsealed the root
/// secret.
pub struct Keyring(Locked<LessSafeKey>);

/// A secret as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct WrappedSecret {
    #[n(0)]
    nonce: ByteArray<NONCE_LEN>,
    /// AES-256-GCM; the vRoT and the purpose are authenticated with it.
    #[n(1)]
    sealed: ByteVec,
}

/// What a wrapped secret is for. The numbers are part of what is authenticated: never give one
/// away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Sealing the vRoT's state.
    State = 1,
    /// Writing the vRoT's NV indices.
    NvIndices = 2,
}

/// Why a secret could not be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no place for a key.
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// Wrapped by another host, for another vRoT or purpose, or altered.
    #[error(
        "the {purpose} of vRoT {vrot} does not open with this host's root secret: the store was \
         altered, or comes from another host"
    )]
    Unwrap {
        /// Whose.
        vrot: VrotId,
        /// Which secret.
        purpose: Purpose,
    },
}

const SALT: &[u8] = b"vrot manager";
const WRAPPING_KEY: &[u8] = b"vrot key wrapping key v1";
const WRAPPED_SECRET: &str = "vrot wrapped secret v1";

impl Keyring {
    /// Derives the wrapping key (HKDF-SHA-256, RFC 5869).
    pub fn derive(root_secret: &[u8; 32]) -> Result<Self, KeyError> {
        let derive = || {
            let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(root_secret);
            match extracted.expand(&[WRAPPING_KEY], &AES_256_GCM) {
                Ok(key) => LessSafeKey::new(UnboundKey::from(key)),
                // One key of 32 bytes is far below the 255 blocks that RFC 5869 §2.3 allows.
                Err(error) => unreachable!("HKDF: {error}"),
            }
        };
        Ok(Self(Locked::new(derive)?))
    }

    /// A new random state key.
    pub fn generate() -> Result<StateKey, KeyError> {
        let mut filled = Ok(());
        let key = StateKey::filled(|key| filled = SystemRandom::new().fill(key))?;
        filled.map_err(|_| KeyError::Random)?;
        Ok(key)
    }

    /// Wraps a secret of a vRoT. Nonces are random: one key wraps a few secrets per vRoT, which
    /// never comes near 2^32 (NIST SP 800-38D §8.3).
    pub fn wrap(
        &self,
        vrot: VrotId,
        purpose: Purpose,
        secret: &[u8],
    ) -> Result<WrappedSecret, KeyError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| KeyError::Random)?;
        let mut sealed = secret.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                associated_data(vrot, purpose),
                &mut sealed,
            )
            // Fails only for plaintexts of many gigabytes.
            .map_err(|_| KeyError::Random)?;
        Ok(WrappedSecret {
            nonce: nonce.into(),
            sealed: sealed.into(),
        })
    }

    /// Unwraps a secret of a vRoT.
    pub fn unwrap(
        &self,
        vrot: VrotId,
        purpose: Purpose,
        wrapped: &WrappedSecret,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut buffer = Zeroizing::new(wrapped.sealed.to_vec());
        let length = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*wrapped.nonce),
                associated_data(vrot, purpose),
                &mut buffer,
            )
            .map_err(|_| KeyError::Unwrap { vrot, purpose })?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Unwraps a vRoT's state key.
    pub fn state_key(&self, vrot: VrotId, wrapped: &WrappedSecret) -> Result<StateKey, KeyError> {
        let secret = self.unwrap(vrot, Purpose::State, wrapped)?;
        let key = secret.as_slice().try_into().map_err(|_| KeyError::Unwrap {
            vrot,
            purpose: Purpose::State,
        })?;
        Ok(StateKey::copied(key)?)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "state key",
            Self::NvIndices => "NV password",
        })
    }
}

/// Ties a wrapped secret to its vRoT and purpose: swapped records do not open.
fn associated_data(vrot: VrotId, purpose: Purpose) -> Aad<Vec<u8>> {
    let mut encoder = Encoder::new(Vec::new());
    let written = encoder
        .array(3)
        .and_then(|e| e.str(WRAPPED_SECRET))
        .and_then(|e| e.u8(purpose as u8))
        .and_then(|e| e.encode(vrot))
        .map(drop);
    match written {
        Ok(()) => Aad::from(encoder.into_writer()),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_secret_opens_for_its_vrot_and_purpose_on_its_host_only() {
        let keyring = Keyring::derive(&[7; 32]).unwrap();
        let vrot = VrotId::random();
        let key = Keyring::generate().unwrap();
        let wrapped = keyring.wrap(vrot, Purpose::State, key.as_bytes()).unwrap();
        let opened = keyring.state_key(vrot, &wrapped).unwrap();
        assert_eq!(opened.as_bytes(), key.as_bytes());

        assert!(keyring.state_key(VrotId::random(), &wrapped).is_err());
        assert!(keyring.unwrap(vrot, Purpose::NvIndices, &wrapped).is_err());
        let other = Keyring::derive(&[8; 32]).unwrap();
        assert!(other.state_key(vrot, &wrapped).is_err());
        let mut altered = wrapped.clone();
        if let Some(byte) = altered.sealed.first_mut() {
            *byte ^= 1;
        }
        assert!(keyring.state_key(vrot, &altered).is_err());
    }

    /// Made by another implementation, with a root secret of sevens: records in the field hold
    /// secrets like this.
    #[test]
    fn a_secret_wrapped_by_version_one_opens() {
        let golden = hex::decode(include_str!("wrapped_secret_v1.hex").trim()).unwrap();
        let wrapped: WrappedSecret = minicbor::decode(&golden).unwrap();
        assert_eq!(minicbor::to_vec(&wrapped).unwrap(), golden);
        let vrot = VrotId::from_uuid(uuid::Uuid::from_bytes([1; 16]));
        let keyring = Keyring::derive(&[7; 32]).unwrap();
        assert_eq!(
            keyring.state_key(vrot, &wrapped).unwrap().as_bytes(),
            &[9; 32]
        );
    }

    #[test]
    fn the_same_secret_is_never_wrapped_to_the_same_bytes() {
        let keyring = Keyring::derive(&[7; 32]).unwrap();
        let vrot = VrotId::random();
        let wrap = || keyring.wrap(vrot, Purpose::NvIndices, b"secret").unwrap();
        assert_ne!(wrap(), wrap());
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let keyring = Keyring::derive(&[7; 32]).unwrap();
        assert_eq!(format!("{keyring:?}"), "Keyring");
    }
}
