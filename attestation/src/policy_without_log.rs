//! What a policy demands of a VM whose evidence has no boot log: its section `[vm.without_log]`.
//!
//! Whoever makes a quote decides whether a log goes with it. So nothing may be demanded of evidence
//! without one that is less than what is demanded of evidence with it: else a guest could drop its log
//! to hide what the log tells.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::launch::LaunchPolicy;
use crate::reference::{BOOT_PCRS, ReferenceValues};

/// What takes the place of a boot log. Without this section, evidence without a log is
/// contraindicated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithoutLog {
    /// Each of these.
    demand: BTreeSet<InsteadOfLog>,
}

/// One thing that can take the place of a boot log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InsteadOfLog {
    /// Each PCR that a boot chain measures into has a value that the policy lists, unless the policy
    /// ignores it. Single events cannot be looked at.
    PinnedPcrs,
    /// The host measured the launch, and it is one that the policy lists. Alone it does not do where
    /// firmware measures into the TPM: what a firmware started, only PCRs tell.
    PinnedLaunch,
}

/// Why such a section is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WithoutLogError {
    /// Nothing is demanded.
    #[error(
        "`demand` in [vm.without_log] is empty: list `pinned-pcrs` or `pinned-launch`, or both"
    )]
    Nothing,
    /// A guest could drop its log to hide what it booted.
    #[error(
        "the policy has reference values in [vm.reference], and `demand` in [vm.without_log] lists \
         `pinned-launch` alone: a guest that booted something else could leave its log out. List \
         `pinned-pcrs` as well, or write a policy of its own, without [vm.reference], for VMs whose \
         TPM no firmware measures into"
    )]
    Hidden,
    /// The launch may be any.
    #[error(
        "`pinned-launch` in [vm.without_log] needs a section [launch] that is `required` and lists \
         `digests`, or in [launch.parts] at least `kernel` or `firmware`"
    )]
    Launch,
    /// PCRs may have any value.
    #[error(
        "`pinned-pcrs` in [vm.without_log] needs a value in [vm.reference.pcrs] for each PCR that a \
         boot chain measures into, or the PCR in `ignored_pcrs`; missing: PCR {}",
        .0.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
    )]
    Pcrs(Vec<u8>),
}

impl WithoutLog {
    /// Whether this takes the place of a log.
    pub fn demands(&self, what: InsteadOfLog) -> bool {
        self.demand.contains(&what)
    }

    /// Refuses a section that any boot would meet.
    pub(crate) fn check(
        &self,
        reference: Option<&ReferenceValues>,
        launch: Option<&LaunchPolicy>,
    ) -> Result<(), WithoutLogError> {
        if self.demand.is_empty() {
            return Err(WithoutLogError::Nothing);
        }
        if self.demands(InsteadOfLog::PinnedPcrs) {
            let pinned = |pcr: &u8| {
                reference.is_some_and(|reference| {
                    reference.ignores(*pcr) || reference.pcrs.contains_key(pcr)
                })
            };
            let open: Vec<u8> = BOOT_PCRS.into_iter().filter(|pcr| !pinned(pcr)).collect();
            if !open.is_empty() {
                return Err(WithoutLogError::Pcrs(open));
            }
        } else if reference.is_some() {
            return Err(WithoutLogError::Hidden);
        }
        let launch_says = launch.is_some_and(LaunchPolicy::says_what_was_launched);
        if self.demands(InsteadOfLog::PinnedLaunch) && !launch_says {
            return Err(WithoutLogError::Launch);
        }
        Ok(())
    }
}
