//! How callers name a vRoT.

use std::fmt;
use std::str::FromStr;

use cert_chain::VrotId;
use cert_chain::identifiers::IdentifierError;
use uuid::Uuid;

/// Number of a vRoT or of the VM it belongs to: people know the one, programs often the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VrotKey(Uuid);

impl VrotKey {
    /// The number.
    pub fn number(self) -> Uuid {
        self.0
    }
}

impl From<VrotId> for VrotKey {
    fn from(vrot: VrotId) -> Self {
        Self(*vrot.as_uuid())
    }
}

impl FromStr for VrotKey {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(*text.parse::<VrotId>()?.as_uuid()))
    }
}

impl fmt::Display for VrotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        VrotId::from_uuid(self.0).fmt(f)
    }
}
