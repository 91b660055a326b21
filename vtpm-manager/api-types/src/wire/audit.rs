//! The state of the audit log.

use std::path::PathBuf;

use cert_chain::Digest32;
use serde::{Deserialize, Serialize};

/// The audit log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditView {
    /// The file of the newest part.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub log: PathBuf,
    /// The hash that the log goes on from, or has in it, if parts of it were taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins_after: Option<Digest32>,
    /// Number of lines that the manager knows of, with those of parts that were taken away.
    pub entries: u64,
    /// Number of files.
    pub parts: u64,
    /// Their size.
    pub bytes: u64,
    /// Hash of the last one. Kept elsewhere, it shows later that nothing was cut off.
    pub head: Digest32,
    /// The last of these lines that the physical TPM vouches for: it covers all up to it. Absent while
    /// the store is not open, and of files that are checked without a manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched_lines: Option<u64>,
    /// Whether the files hold exactly these lines, unaltered.
    pub intact: bool,
    /// What is wrong with them otherwise: what the files lack of these lines, or of lines that the
    /// physical TPM vouched for when the manager was started.
    pub problem: Option<String>,
}

/// Accepts that the audit log lacks lines that the physical TPM vouched for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AuditAcceptance {
    /// The hash of the last of them, as the problem names it.
    pub head: Digest32,
}
