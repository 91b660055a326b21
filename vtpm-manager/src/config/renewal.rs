//! The life of identity keys' certificates.

use std::path::Path;
use std::time::Duration;

use cert_chain::profile::vik::VIK_LIFETIME;

use super::error::ConfigError;

/// How long the certificate of an identity key lives, and when it gets a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalConfig {
    /// How long it lives; it is cut at the end of the host's own certificate.
    pub lifetime: Duration,
    /// Its age when it is renewed, at most half of its life.
    pub after: Duration,
}

/// Below this, clocks of verifiers that are a little fast refuse most certificates.
const SHORTEST_LIFE: u64 = 10 * 60;
/// An identity ends soon after its host may not renew it any more.
const LONGEST_LIFE: u64 = 7 * 24 * 60 * 60;

/// Checks both times, and sets those that are left out.
pub(super) fn renewal(
    lifetime: Option<u64>,
    after: Option<u64>,
    config: &Path,
) -> Result<RenewalConfig, ConfigError> {
    let within = |field, seconds: u64, least, most| {
        if (least..=most).contains(&seconds) {
            return Ok(seconds);
        }
        Err(ConfigError::Renewal {
            config: config.to_owned(),
            field,
            seconds,
            least,
            most,
        })
    };
    let lifetime = lifetime.unwrap_or(VIK_LIFETIME.as_secs());
    let lifetime = within("vik_lifetime_s", lifetime, SHORTEST_LIFE, LONGEST_LIFE)?;
    let after = after.unwrap_or(lifetime / 2);
    let after = within("vik_renew_after_s", after, 1, lifetime / 2)?;
    Ok(RenewalConfig {
        lifetime: Duration::from_secs(lifetime),
        after: Duration::from_secs(after),
    })
}
