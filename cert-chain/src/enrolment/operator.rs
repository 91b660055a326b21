//! Whose approvals the hosts of an issuer may depend on.

use std::collections::BTreeSet;

use crate::name::TpmName;

/// Names of the operator keys that an issuer accepts.
///
/// A host names its operator key itself. Whoever rules a host could have its TPM make an IK under
/// a key of their own, and approve whatever it boots: so an issuer certifies under the keys that
/// it was told, and an issuer that was told none certifies nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorKeys(BTreeSet<TpmName>);

/// Why an issuer does not accept a host's operator key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorKeyError {
    /// The issuer accepts no operator keys at all.
    #[error(
        "this issuer accepts no operator keys, so it certifies no host: name them with \
         `vtpmctl issuer operator-key add`"
    )]
    NoneAccepted,
    /// The host depends on the approvals of a stranger.
    #[error(
        "the host's operator key {found} is none that this issuer accepts: whoever has it approves \
         what the host boots. If it is an operator's, `vtpmctl issuer operator-key add` accepts it"
    )]
    Unknown {
        /// Name of the operator key.
        found: TpmName,
    },
}

impl OperatorKeys {
    /// Refuses a key that is not among them.
    pub fn check(&self, policy_key: &TpmName) -> Result<(), OperatorKeyError> {
        if self.0.is_empty() {
            return Err(OperatorKeyError::NoneAccepted);
        }
        if self.0.contains(policy_key) {
            Ok(())
        } else {
            Err(OperatorKeyError::Unknown {
                found: policy_key.clone(),
            })
        }
    }
}

impl FromIterator<TpmName> for OperatorKeys {
    fn from_iter<I: IntoIterator<Item = TpmName>>(names: I) -> Self {
        Self(names.into_iter().collect())
    }
}
