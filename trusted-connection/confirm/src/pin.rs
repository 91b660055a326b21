//! A person's PIN, in locked memory.

use std::fmt;

use locked_memory::{Locked, NotLocked};
use zeroize::Zeroize;

/// A PIN that is being typed, or has been. It is zeroed when dropped.
pub struct Pin(Locked<Typed>);

struct Typed {
    bytes: [u8; MAX_PIN],
    length: usize,
}

/// A PIN that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a PIN has 6 to 32 characters (digits, letters, signs), not all the same, and is no row such as 123456"
)]
pub struct WeakPin;

const MIN_PIN: usize = 6;
/// As long as the digest of the key's name algorithm: no authorization value is longer (TPM 2.0 Part 1 §19.6.4).
const MAX_PIN: usize = 32;

impl Pin {
    /// An empty one.
    pub fn new() -> Result<Self, NotLocked> {
        Locked::new(|| Typed {
            bytes: [0; MAX_PIN],
            length: 0,
        })
        .map(Self)
    }

    /// Adds a character. One that is too many makes no other PIN: it is a PIN that no key has.
    pub fn push(&mut self, byte: u8) {
        let at = self.0.length;
        if let Some(place) = self.0.bytes.get_mut(at) {
            *place = byte;
        }
        self.0.length = at.saturating_add(1);
    }

    /// Takes the last character back.
    pub fn pop(&mut self) {
        self.0.length = self.0.length.saturating_sub(1);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.bytes.zeroize();
        self.0.length = 0;
    }

    /// Whether nothing was typed.
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// The characters; `None` if there are more than a PIN has.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        self.0.bytes.get(..self.0.length)
    }

    /// Whether it can be set.
    pub fn check(&self) -> Result<(), WeakPin> {
        let bytes = self.bytes().ok_or(WeakPin)?;
        let step = |by: i16| {
            let mut pairs = bytes.iter().zip(bytes.iter().skip(1));
            pairs.all(|(a, b)| i16::from(*b) - i16::from(*a) == by)
        };
        let is_row = step(0) || step(1) || step(-1);
        match bytes.len() >= MIN_PIN && bytes.iter().all(u8::is_ascii_graphic) && !is_row {
            true => Ok(()),
            false => Err(WeakPin),
        }
    }

    /// Whether both are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}
