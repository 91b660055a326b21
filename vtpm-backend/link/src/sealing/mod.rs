//! Sealing of state: it leaves this process only encrypted.
//!
//! AES-256-GCM with a random nonce in front; the additional data are the vRoT's id, what is
//! sealed and the generation: so a sealed state fits no other vRoT, no other generation and no
//! other place. The permanent state is sealed in `pieces`.

mod pieces;

use locked_memory::{Locked, NotLocked};
use minicbor::bytes::ByteArray;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::state_key::StateKey;

/// Seals and opens the state of one vRoT in one generation.
pub struct Sealer {
    key: Locked<Keys>,
    vrot: [u8; 16],
    generation: u64,
    random: SystemRandom,
}

/// With their key schedules, which ring itself would not zero.
struct Keys {
    cipher: LessSafeKey,
    /// From which the nonces of pieces are made.
    nonces: hmac::Key,
}

/// What is sealed, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The permanent state, for the manager's store.
    Permanent,
    /// The same, with the name of what a VMM carries.
    PermanentBesideCarried,
    /// The volatile state of a suspended vRoT, for the manager's store.
    Volatile,
    /// What a VMM is given in the place of the permanent state.
    CarriedPermanent,
    /// The volatile state that a VMM is given.
    CarriedVolatile,
}

/// Names the state that a VMM carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedId([u8; CARRIED_ID_LENGTH]);

/// A permanent state, opened.
pub struct Permanent {
    /// As the TPM wrote it.
    pub state: Zeroizing<Vec<u8>>,
    /// What a VMM carries, if that belongs to it: the TPM did nothing since.
    pub carried: Option<CarriedId>,
}

/// Why a state was not sealed or opened.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealingError {
    /// The state is another vRoT's, of another generation, or was altered.
    #[error(
        "the state does not open: it was altered, or belongs to another vRoT, host or generation"
    )]
    DoesNotOpen,
    /// There is no place for the key.
    #[error(transparent)]
    NotLocked(#[from] NotLocked),
    /// The key is unusable, or the system gave no random numbers.
    #[error("the state could not be sealed")]
    NotSealed,
}

const DOMAIN: &str = "vrot state v1";
/// 128 random bits: they cannot be guessed, and do not repeat.
const CARRIED_ID_LENGTH: usize = 16;
const NONCE_KEY: &[u8] = b"vrot state nonces v2";

impl Sealer {
    /// A sealer for this vRoT and generation.
    pub fn new(key: &StateKey, vrot: [u8; 16], generation: u64) -> Result<Self, SealingError> {
        let usable = || {
            let nonces = hmac::sign(&hmac::Key::new(HMAC_SHA256, key.as_bytes()), NONCE_KEY);
            Ok::<_, Unspecified>(Keys {
                cipher: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes())?),
                nonces: hmac::Key::new(HMAC_SHA256, nonces.as_ref()),
            })
        };
        let key = Locked::try_new(usable)?.map_err(|_| SealingError::NotSealed)?;
        Ok(Self {
            key,
            vrot,
            generation,
            random: SystemRandom::new(),
        })
    }

    /// Seals a state.
    pub fn seal(&self, content: Content, state: &[u8]) -> Result<Vec<u8>, SealingError> {
        match content {
            // It is written often, and little of it changes each time.
            Content::Permanent => self.seal_pieces(content, state),
            Content::PermanentBesideCarried
            | Content::Volatile
            | Content::CarriedPermanent
            | Content::CarriedVolatile => self.seal_at_once(content, state),
        }
    }

    fn seal_at_once(&self, content: Content, state: &[u8]) -> Result<Vec<u8>, SealingError> {
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| SealingError::NotSealed)?;
        let mut sealed = nonce.to_vec();
        let mut body = Zeroizing::new(state.to_vec());
        let tag = self
            .key
            .cipher
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(self.context(content)),
                &mut body,
            )
            .map_err(|_| SealingError::NotSealed)?;
        sealed.extend_from_slice(&body);
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens a sealed state.
    pub fn open(
        &self,
        content: Content,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        match self.open_pieces(content, sealed) {
            Some(opened) => opened,
            None => self.key.open(&self.context(content), sealed),
        }
    }

    /// Seals a permanent state, and with it the name of what a VMM carries.
    pub fn seal_permanent(
        &self,
        state: &[u8],
        carried: Option<CarriedId>,
    ) -> Result<Vec<u8>, SealingError> {
        match carried {
            None => self.seal(Content::Permanent, state),
            Some(id) => self.seal_named(Content::PermanentBesideCarried, id, state),
        }
    }

    /// Opens what [`seal_permanent`](Self::seal_permanent) sealed.
    pub fn open_permanent(&self, sealed: &[u8]) -> Result<Permanent, SealingError> {
        match self.open(Content::Permanent, sealed) {
            Ok(state) => Ok(Permanent {
                state,
                carried: None,
            }),
            Err(SealingError::DoesNotOpen) => {
                let (id, state) = self.open_named(Content::PermanentBesideCarried, sealed)?;
                Ok(Permanent {
                    state,
                    carried: Some(id),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// A new name for what a VMM is to carry.
    pub fn new_carried_id(&self) -> Result<CarriedId, SealingError> {
        let mut id = CarriedId([0; CARRIED_ID_LENGTH]);
        self.random
            .fill(&mut id.0)
            .map_err(|_| SealingError::NotSealed)?;
        Ok(id)
    }

    /// Seals something under a name.
    pub fn seal_named(
        &self,
        content: Content,
        id: CarriedId,
        state: &[u8],
    ) -> Result<Vec<u8>, SealingError> {
        self.seal(content, &Zeroizing::new([&id.0, state].concat()))
    }

    /// Opens what [`seal_named`](Self::seal_named) sealed.
    pub fn open_named(
        &self,
        content: Content,
        sealed: &[u8],
    ) -> Result<(CarriedId, Zeroizing<Vec<u8>>), SealingError> {
        let opened = self.open(content, sealed)?;
        let (id, state) = opened
            .split_first_chunk()
            .ok_or(SealingError::DoesNotOpen)?;
        Ok((CarriedId(*id), state.to_vec().into()))
    }

    fn context(&self, content: Content) -> Vec<u8> {
        let vrot = ByteArray::from(self.vrot);
        encoded((DOMAIN, content.name(), vrot, self.generation))
    }
}

impl Keys {
    /// Opens a nonce and what was sealed under it.
    fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let (nonce, body) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SealingError::DoesNotOpen)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .cipher
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context),
                &mut body,
            )
            .map_err(|_| SealingError::DoesNotOpen)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

impl Content {
    fn name(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::PermanentBesideCarried => "permanent beside carried",
            Self::Volatile => "volatile",
            Self::CarriedPermanent => "carried permanent",
            Self::CarriedVolatile => "carried volatile",
        }
    }
}

fn encoded(context: impl minicbor::Encode<()>) -> Vec<u8> {
    match minicbor::to_vec(context) {
        Ok(context) => context,
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn sealer(key: u8, vrot: u8, generation: u64) -> Sealer {
        let key = StateKey::copied(&[key; 32]).unwrap();
        Sealer::new(&key, [vrot; 16], generation).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.trim().as_bytes().chunks(2);
        digits
            .map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn a_sealed_state_opens_for_its_own_vrot_and_generation_alone() {
        let sealed = sealer(1, 2, 3).seal(Content::Permanent, b"state").unwrap();
        assert_eq!(
            **sealer(1, 2, 3).open(Content::Permanent, &sealed).unwrap(),
            *b"state"
        );
        for other in [sealer(9, 2, 3), sealer(1, 9, 3), sealer(1, 2, 9)] {
            assert_eq!(
                other.open(Content::Permanent, &sealed),
                Err(SealingError::DoesNotOpen)
            );
        }
    }

    /// Made by another implementation: stores in the field hold state like this.
    #[test]
    fn a_state_sealed_by_version_one_opens() {
        let golden = bytes(include_str!("sealed_state_v1.hex"));
        let opened = sealer(1, 2, 3).open(Content::Permanent, &golden).unwrap();
        assert_eq!(**opened, *b"state");
    }

    /// Made by another implementation, as well.
    #[test]
    fn a_state_beside_a_carried_one_sealed_by_version_one_opens() {
        let golden = include_str!("sealed_state_beside_carried_v1.hex");
        let opened = sealer(1, 2, 3).open_permanent(&bytes(golden)).unwrap();
        assert_eq!(**opened.state, *b"state");
        assert_eq!(opened.carried, Some(CarriedId([0x55; 16])));
    }

    #[test]
    fn a_permanent_state_tells_whether_a_vmm_carries_its_volatile_state_and_which() {
        let sealer = sealer(1, 2, 3);
        let (first, second) = (
            sealer.new_carried_id().unwrap(),
            sealer.new_carried_id().unwrap(),
        );
        assert_ne!(first, second);
        for carried in [None, Some(first), Some(second)] {
            let sealed = sealer.seal_permanent(b"state", carried).unwrap();
            let opened = sealer.open_permanent(&sealed).unwrap();
            assert_eq!((&**opened.state, opened.carried), (&b"state"[..], carried));
        }
    }

    /// Made by another implementation: stores in the field hold state like this.
    #[test]
    fn a_state_sealed_in_pieces_stays_as_it_is() {
        let state: Vec<u8> = (0..1500u16).map(|byte| byte.to_be_bytes()[1]).collect();
        let sealed = sealer(1, 2, 3).seal(Content::Permanent, &state).unwrap();
        let digits: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, include_str!("sealed_state_v2.hex").trim());
    }

    #[test]
    fn a_small_change_of_a_large_state_changes_its_piece_and_the_head() {
        let sealer = sealer(1, 2, 3);
        let mut state = vec![7; 130_000];
        let before = sealer.seal(Content::Permanent, &state).unwrap();
        state[65_000..65_008].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let after = sealer.seal(Content::Permanent, &state).unwrap();
        assert_eq!(**sealer.open(Content::Permanent, &after).unwrap(), *state);
        assert_eq!(before.len(), after.len());
        let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(differing <= 1024 + 36, "{differing}");
        // A piece of the older one does not pass in the newer one.
        let changed = before
            .iter()
            .zip(&after)
            .rposition(|(a, b)| a != b)
            .unwrap();
        let piece = 36 + (changed - 36) / 1024 * 1024;
        let mut mixed = after.clone();
        mixed[piece..piece + 1024].copy_from_slice(&before[piece..piece + 1024]);
        let refused = Err(SealingError::DoesNotOpen);
        assert_eq!(sealer.open(Content::Permanent, &mixed), refused);
        // Nor do equal pieces look alike in two places, or for two vRoTs.
        let [one, two] = [&before[36..1060], &before[1060..2084]];
        assert_ne!(one, two);
        let other = super::tests::sealer(1, 9, 3);
        let other = other.seal(Content::Permanent, &[7; 130_000]).unwrap();
        assert_ne!(before[36..1060], other[36..1060]);
    }

    #[test]
    fn a_sealed_state_opens_for_its_purpose_alone() {
        let all = [
            Content::Permanent,
            Content::PermanentBesideCarried,
            Content::Volatile,
            Content::CarriedPermanent,
            Content::CarriedVolatile,
        ];
        for sealed_as in all {
            let sealed = sealer(1, 2, 3).seal(sealed_as, b"state").unwrap();
            for opened_as in all {
                let opened = sealer(1, 2, 3).open(opened_as, &sealed);
                assert_eq!(opened.is_ok(), opened_as == sealed_as);
            }
        }
    }

    #[test]
    fn every_changed_byte_and_every_truncation_is_noticed() {
        let sealed = sealer(1, 2, 3).seal(Content::Permanent, b"state").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            *changed.get_mut(at).unwrap() ^= 1;
            assert!(sealer(1, 2, 3).open(Content::Permanent, &changed).is_err());
            assert!(
                sealer(1, 2, 3)
                    .open(Content::Permanent, sealed.get(..at).unwrap())
                    .is_err()
            );
        }
    }
}
