//! Whose approvals the hosts of an issuer may depend on.

use std::collections::BTreeSet;

use super::issuer::EnrolmentError;
use crate::name::TpmName;

/// Names of the operator keys that an issuer accepts.
///
/// A host names its operator key itself. Whoever rules a host could have its TPM make an IK under
/// a key of their own, and approve whatever it boots: so an issuer certifies under the keys that
/// it was told, and an issuer that was told none certifies nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorKeys(BTreeSet<TpmName>);

impl OperatorKeys {
    /// Refuses a key that is not among them.
    pub fn check(&self, policy_key: &TpmName) -> Result<(), EnrolmentError> {
        if self.0.is_empty() {
            return Err(EnrolmentError::NoOperatorKeys);
        }
        if self.0.contains(policy_key) {
            Ok(())
        } else {
            Err(EnrolmentError::UnknownOperatorKey {
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
