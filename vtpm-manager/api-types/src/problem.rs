//! Errors as problem details (RFC 9457).

use serde::{Deserialize, Serialize};

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:vrot:problem:` and a code that stays the same.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do about it.
    pub detail: String,
}

/// Media type of problem details (RFC 9457 §6.1).
pub const PROBLEM_JSON: &str = "application/problem+json";
const PREFIX: &str = "urn:vrot:problem:";

/// Code of the problem that the manager was just started and is opening its store: the request is
/// to be sent again.
pub const OPENING: &str = "opening";

impl Problem {
    /// A problem with this code, under this HTTP status.
    pub fn new(status: u16, title: &str, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{PREFIX}{code}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
        }
    }

    /// The code without its prefix.
    pub fn code(&self) -> &str {
        self.kind.strip_prefix(PREFIX).unwrap_or(&self.kind)
    }
}
