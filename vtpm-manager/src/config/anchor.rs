//! The physical TPM: which PCRs count, in which bank, and when the rollback register is written.

use std::path::Path;

use cert_chain::operator::measures_a_boot;
use cert_chain::pcr::{BANKS, PcrSelectionError};
use cert_chain::{HashAlgorithm, PcrSelection};
use guarded_state::ledger::{AnchorPolicy, CheckpointInterval};
use serde::Deserialize;

use super::error::ConfigError;

/// Which [`AnchorPolicy`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PolicyName {
    Strict,
    #[default]
    Checkpoint,
}

/// When the rollback register is written. A strict anchor has no interval.
pub(super) fn anchor_policy(
    name: PolicyName,
    interval: Option<u64>,
    config: &Path,
) -> Result<AnchorPolicy, ConfigError> {
    match (name, interval) {
        (PolicyName::Strict, None) => Ok(AnchorPolicy::Strict),
        (PolicyName::Strict, Some(_)) => Err(ConfigError::Value {
            config: config.to_owned(),
            field: "checkpoint_interval_s",
            problem: "goes with `anchor_policy = \"checkpoint\"`: a strict anchor has no \
                      interval, so leave it out"
                .to_owned(),
        }),
        (PolicyName::Checkpoint, None) => Ok(AnchorPolicy::Checkpoint(CheckpointInterval::DEFAULT)),
        (PolicyName::Checkpoint, Some(seconds)) => CheckpointInterval::from_secs(seconds)
            .map(AnchorPolicy::Checkpoint)
            .ok_or_else(|| ConfigError::Interval {
                config: config.to_owned(),
                seconds,
            }),
    }
}

/// At least one PCR.
pub(super) fn selection(
    pcrs: &[u8],
    field: &'static str,
    config: &Path,
) -> Result<PcrSelection, ConfigError> {
    let refused = |reason: String| ConfigError::Pcrs {
        config: config.to_owned(),
        field,
        reason,
    };
    if pcrs.is_empty() {
        return Err(refused("the list is empty".to_owned()));
    }
    PcrSelection::new(pcrs.iter().copied())
        .map_err(|error: PcrSelectionError| refused(error.to_string()))
}

/// The PCRs under policy, among them some that a boot changes: any program can reset the others.
pub(super) fn policy_selection(pcrs: &[u8], config: &Path) -> Result<PcrSelection, ConfigError> {
    let selection = selection(pcrs, "policy_pcrs", config)?;
    measures_a_boot(selection).map_err(|error| ConfigError::Pcrs {
        config: config.to_owned(),
        field: "policy_pcrs",
        reason: error.to_string(),
    })?;
    Ok(selection)
}

/// The bank that is approved and quoted, if the configuration names one that may be.
pub(super) fn bank(
    named: Option<HashAlgorithm>,
    config: &Path,
) -> Result<Option<HashAlgorithm>, ConfigError> {
    match named.filter(|bank| !BANKS.contains(bank)) {
        None => Ok(named),
        Some(bank) => Err(ConfigError::Value {
            config: config.to_owned(),
            field: "pcr_bank",
            problem: format!(
                "is {bank}, which cannot be relied on: write sha256, sha384 or sha512"
            ),
        }),
    }
}
