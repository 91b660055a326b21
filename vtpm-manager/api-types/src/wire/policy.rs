//! What the host's keys are bound to, and what an operator approved.

use std::collections::BTreeMap;

use cert_chain::pcr::PcrValuesError;
use cert_chain::{Digest32, HashAlgorithm, PcrValues, TpmName};
use serde::{Deserialize, Serialize};

/// What the host's keys are bound to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// Name of the key whose approvals count.
    pub policy_key: TpmName,
    /// Digest of the `PolicyAuthorize` that the objects below carry.
    pub policy_digest: Digest32,
    /// What is bound to it.
    pub objects: Vec<String>,
    /// The PCR bank that approvals and quotes are of.
    pub bank: HashAlgorithm,
    /// Present values of the PCRs that approvals are about, in hexadecimal.
    pub pcrs: BTreeMap<u8, String>,
    /// Whether an approval covers the present values.
    pub satisfied: bool,
    /// What was approved, oldest first.
    pub approvals: Vec<ApprovalView>,
}

impl PolicyView {
    /// The present values, as an approval takes them.
    pub fn values(&self) -> Result<PcrValues, PcrValuesError> {
        let values = self.pcrs.iter().map(|(pcr, value)| (*pcr, value.as_str()));
        PcrValues::from_hex(self.bank, values)
    }
}

/// One approval beside the present state of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ApprovalView {
    /// What the note in it calls it. The signature does not cover the note.
    pub label: String,
    /// The PCR bank that it is of.
    pub bank: HashAlgorithm,
    /// Where the PCRs differ from it; nowhere, if it is in force.
    pub differences: Vec<DifferenceView>,
}

/// One PCR that has another value than approved.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DifferenceView {
    /// Which PCR.
    pub pcr: u8,
    /// Its value now, in hexadecimal.
    pub found: String,
    /// The value in the approval, if it covers the PCR in this bank.
    pub approved: Option<String>,
}
