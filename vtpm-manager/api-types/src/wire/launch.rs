//! What a VM is launched with, and what was measured of it.

use cert_chain::Digest32;
use serde::{Deserialize, Serialize};

/// What is to be measured before a VM's start.
///
/// Files are passed as descriptors (`SCM_RIGHTS`) that are open for reading, with the first bytes of the
/// request: so whoever asks can read what is measured, and the manager opens no path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// 1 to 32 parts, each named once.
    pub parts: Vec<LaunchPartRequest>,
}

/// A part of a launch.
///
/// | part | source |
/// |---|---|
/// | `firmware`, `firmware-variables`, `kernel`, `initramfs`, `disk:NAME`, `file:NAME` | `descriptor` |
/// | `machine`, `cpus`, `cpu-model`, `memory-mib`, `value:NAME` | `value` |
/// | `command-line`, `text:NAME` | `text` |
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LaunchPartRequest {
    /// What it is.
    pub part: String,
    /// What is measured.
    #[serde(flatten)]
    pub source: LaunchSource,
}

/// Where the value of a part comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LaunchSource {
    /// The contents of a regular file: which of the descriptors that came with the request, from 0
    /// on. Evidence has their SHA-256 value.
    Descriptor(u32),
    /// A setting, as it is told in evidence: 1 to 64 printable ASCII characters.
    Value(String),
    /// A text of any length that may be nobody's business: evidence has the SHA-256 value of its
    /// bytes.
    Text(String),
}

/// How a vRoT is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// What is measured before. Without it, what was measured since the vRoT ran last counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<LaunchRequest>,
}

/// What was measured of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LaunchView {
    /// Whether the vRoT is started without.
    pub required: bool,
    /// What is measured of it at present, and what evidence says.
    pub state: LaunchState,
    /// The digest over all parts, if they were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest32>,
    /// The parts in the order of their names.
    pub parts: Vec<LaunchPartView>,
}

/// How it stands with the measurement of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LaunchState {
    /// Nothing was measured for the present start, or for the next.
    NotMeasured,
    /// Measured for the next start.
    Prepared,
    /// Measured for the present start: evidence tells it.
    InForce,
    /// Measured for the present start; but a second VMM has attached since, and evidence says that
    /// nothing was measured.
    UsedUp,
}

/// A part that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LaunchPartView {
    /// What it is.
    pub part: String,
    /// Its value, as a policy names it: `sha256:` and 64 hexadecimal digits, or the setting.
    pub value: String,
}
