//! What it takes to write the certificate indices of one vRoT.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::error::ManufactureError;

/// The authorization value of [`NvIndex::WRITER`](cert_chain::layout::NvIndex::WRITER). Not printable, zeroed on
/// drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct NvAuthority([u8; NV_AUTHORITY_LENGTH]);

/// As long as the name algorithm's digest allows (TPM 2.0 Part 2 §10.4).
pub const NV_AUTHORITY_LENGTH: usize = 32;

impl NvAuthority {
    /// Takes up a value that was stored.
    pub const fn from_bytes(bytes: [u8; NV_AUTHORITY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The value, for sealed storage.
    pub const fn expose(&self) -> &[u8; NV_AUTHORITY_LENGTH] {
        &self.0
    }

    pub(super) fn random() -> Result<Self, ManufactureError> {
        let mut bytes = [0; NV_AUTHORITY_LENGTH];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| ManufactureError::Random)?;
        // A zero at the end would be taken off by the TPM, as authorization values have none.
        if let Some(last) = bytes.last_mut() {
            *last |= 1;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for NvAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NvAuthority")
    }
}
