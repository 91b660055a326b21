//! What a policy accepts of a launch: its section `[launch]`.

use std::collections::{BTreeMap, BTreeSet};

use cert_chain::Digest32;
use serde::Deserialize;

use super::part::{PartId, PartValue};

/// What a VM may have been launched as. Without this section any launch will do, also one that was
/// not measured.
///
/// A measurement is accepted if it has one of the `digests`; or if `parts` lists acceptable values for
/// each of its parts but the ignored ones, and it has all parts that are listed. With neither, any
/// measurement is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchPolicy {
    /// Whether a VM has to be measured at all.
    #[serde(default = "yes")]
    pub required: bool,
    /// Digests over all parts, as `vtpmctl measure` prints them.
    #[serde(default)]
    pub digests: BTreeSet<Digest32>,
    /// The acceptable values of each part.
    #[serde(default)]
    pub parts: BTreeMap<PartId, BTreeSet<PartValue>>,
    /// Parts that do not matter, unless values are listed for them.
    #[serde(default)]
    pub ignored_parts: BTreeSet<PartId>,
}

impl LaunchPolicy {
    /// Whether a launch that meets it was measured, and its digest or what it began with is listed.
    pub fn says_what_was_launched(&self) -> bool {
        let begins = |part: &PartId| BEGINNINGS.contains(&part.as_str());
        self.required && (!self.digests.is_empty() || self.parts.keys().any(begins))
    }

    /// Whether the policy says of a part that it does not matter.
    pub fn ignores(&self, part: &PartId) -> bool {
        self.ignored_parts.contains(part) && !self.parts.contains_key(part)
    }
}

/// The parts that a VM can begin with.
const BEGINNINGS: [&str; 2] = ["firmware", "kernel"];

fn yes() -> bool {
    true
}
