//! Verdicts, the best first.

use std::fmt;

use serde::Serialize;

/// How far a layer can be relied on: the tiers of AR4SI (draft-ietf-rats-ar4si §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is as the policy expects.
    Affirming,
    /// Nothing contradicts the policy, but it does not cover everything.
    Warning,
    /// Something contradicts the policy.
    Contraindicated,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        })
    }
}
