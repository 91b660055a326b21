//! The store, and its recovery.

use cert_chain::{Generation, VrotId};
use serde::{Deserialize, Serialize};

/// The store, held against the rollback anchor in the physical TPM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StoreView {
    /// `opening` (the manager has just started), `blank`, `open`, `locked` (the root secret is out of
    /// reach) or `refused`.
    pub state: String,
    /// Short name of the refusal: what `POST /v1/host/recover` accepts.
    pub refusal: Option<String>,
    /// What is wrong and what to do about it.
    pub problem: Option<String>,
    /// Number of the newest batch.
    pub batch: Option<u64>,
    /// Batches of changes that a loss of power could cut off now.
    pub uncovered_batches: Option<u64>,
    /// Changes older than this cannot be cut off; 0 under the policy `strict`.
    pub window_s: Option<u64>,
    /// Age in seconds of the oldest change that a loss of power could cut off now.
    pub window_age_s: Option<u64>,
    /// `strict` or `checkpoint`: when the physical TPM vouches durably for what is new.
    pub policy: Option<String>,
    /// How the host came up: `continued`, `after-shutdown`, `after-power-loss`, or `unfinished`
    /// while it was being set up or recovered.
    pub boot: Option<String>,
    /// The last loss of power that may have cut off state, until a recovery gives all vRoTs a new
    /// generation.
    pub power_loss: Option<PowerLossView>,
    /// Backends that go on without a manager, because the store is not open.
    #[serde(default)]
    pub unadopted: u64,
    /// How many of them answered a command before its state was durable.
    #[serde(default)]
    pub unadopted_degraded: u64,
}

/// A loss of power that may have cut off the newest state unseen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PowerLossView {
    /// Number of the first batch afterwards.
    pub batch: u64,
    /// When that was, in seconds since 1970.
    pub time: u64,
    /// Changes this old or younger, in seconds, may be missing.
    pub window_s: u64,
}

/// Accepts a store that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// Short name of the refusal, as the host shows it.
    #[cfg_attr(feature = "schema", schema(example = "restored-store"))]
    pub accept: String,
}

/// What a recovery did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RecoveryView {
    /// What was accepted.
    pub accepted: String,
    /// What had been found.
    pub finding: String,
    /// Number of the batch that the recovery is.
    pub batch: u64,
    /// The generation that the vRoTs have from now on.
    pub generation: Generation,
    /// vRoTs that have it.
    pub raised: Vec<VrotId>,
    /// Deleted vRoTs whose records had come back, and went.
    pub discarded: Vec<VrotId>,
    /// vRoTs of which nothing usable was left.
    pub lost: Vec<VrotId>,
}
