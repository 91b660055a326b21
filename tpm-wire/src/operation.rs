//! Names of TPM commands.

use std::fmt;

/// A TPM command, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation(pub &'static str);

impl Operation {
    /// `TPM2_PolicyPCR`
    pub const POLICY_PCR: Self = Self("TPM2_PolicyPCR");
    /// `TPM2_Unseal`
    pub const UNSEAL: Self = Self("TPM2_Unseal");
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
