//! The host's root secret in memory.

use std::fmt;

use locked_memory::Locked;

/// The host's root secret: every vRoT's key is derived from it. Not printable, in locked memory,
/// zeroed on drop.
pub struct RootSecret(Locked<[u8; ROOT_SECRET_LENGTH]>);

/// Length of [`RootSecret`].
pub const ROOT_SECRET_LENGTH: usize = 32;

impl RootSecret {
    pub(super) fn from_unsealed(secret: &[u8]) -> Option<Self> {
        let secret: &[u8; ROOT_SECRET_LENGTH] = secret.try_into().ok()?;
        let locked = Locked::new(|| *secret);
        let locked = locked.inspect_err(|error| tracing::error!(%error, "no root secret"));
        locked.ok().map(Self)
    }

    /// The secret itself, for a key derivation function.
    pub fn expose(&self) -> &[u8; ROOT_SECRET_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootSecret")
    }
}
