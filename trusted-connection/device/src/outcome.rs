//! How commands end.

use std::process::ExitCode;

use attestation::Verdict;

/// How a command that could be carried out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done; if there was something to judge, the verdict is affirming.
    Good,
    /// The verdict is less than affirming.
    NotAffirming,
    /// A request to a time-stamp authority has to be answered first.
    Waiting,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::SUCCESS,
            Outcome::NotAffirming => Self::from(1),
            Outcome::Waiting => Self::from(3),
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Affirming => Self::Good,
            Verdict::Warning | Verdict::Contraindicated => Self::NotAffirming,
        }
    }
}
