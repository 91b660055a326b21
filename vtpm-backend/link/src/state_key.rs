//! The key under which a vRoT's state is sealed.

use std::fmt;

use locked_memory::{Locked, NotLocked};
use minicbor::{Decode, Encode};

/// A key for AES-256-GCM, in locked memory. It is zeroed when dropped and never shown.
pub struct StateKey(Locked<[u8; STATE_KEY_LENGTH]>);

/// Length of a [`StateKey`].
pub const STATE_KEY_LENGTH: usize = 32;

impl StateKey {
    /// A key that `fill` writes to where it will lie.
    pub fn filled(fill: impl FnOnce(&mut [u8; STATE_KEY_LENGTH])) -> Result<Self, NotLocked> {
        let mut key = Locked::new(|| [0; STATE_KEY_LENGTH])?;
        fill(&mut key);
        Ok(Self(key))
    }

    /// Copies a key.
    pub fn copied(key: &[u8; STATE_KEY_LENGTH]) -> Result<Self, NotLocked> {
        Self::filled(|copy| copy.copy_from_slice(key))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; STATE_KEY_LENGTH] {
        &self.0
    }
}

impl<C> Encode<C> for StateKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(self.as_bytes())?.ok()
    }
}

/// Straight from the frame to its place.
impl<'b, C> Decode<'b, C> for StateKey {
    fn decode(
        decoder: &mut minicbor::Decoder<'b>,
        _: &mut C,
    ) -> Result<Self, minicbor::decode::Error> {
        let key = decoder
            .bytes()?
            .try_into()
            .map_err(|_| minicbor::decode::Error::message("a state key has another length"))?;
        Self::copied(key).map_err(minicbor::decode::Error::custom)
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() -> anyhow::Result<()> {
        let text = format!("{:?}", StateKey::copied(&[9; 32])?);
        assert_eq!(text, "StateKey");
        Ok(())
    }
}
