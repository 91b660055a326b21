//! The secret that a browser shows.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// 128 random bits: whoever knows them may look, until the program ends.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

/// The operating system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random numbers for a token")]
pub struct TokenError;

const BYTES: usize = 16;

impl Token {
    /// A new one.
    pub fn new() -> Result<Self, TokenError> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        SystemRandom::new()
            .fill(bytes.as_mut())
            .map_err(|_| TokenError)?;
        Ok(Self(Zeroizing::new(hex::encode(*bytes))))
    }

    /// 32 hexadecimal digits, for the terminal or the file of who may look.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is it. Digests are compared, so that the time that this takes says nothing of how
    /// much of a guess is right.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        digest(&SHA256, self.0.as_bytes()).as_ref() == digest(&SHA256, shown).as_ref()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
