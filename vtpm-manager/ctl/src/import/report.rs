//! What became of each place.

use api_types::WithCauses;
use cert_chain::{VmId, VrotId};
use serde::Serialize;

use super::places::Place;
use crate::error::CtlError;
use crate::output::Table;

/// What was done.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// It is a vRoT now.
    Imported {
        /// Which.
        vrot: VrotId,
    },
    /// Nothing is in the way of that.
    WouldBeImported,
    /// It is swtpm's again.
    Undone,
    /// Nothing is in the way of that.
    WouldBeUndone,
    /// Nothing was changed, unless the reason says so.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One place.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    place: String,
    vm: Option<VmId>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Entry {
    pub(super) fn new(place: &Place, outcome: Result<Outcome, CtlError>) -> Self {
        Self {
            place: place.location.to_string(),
            vm: place.vm().ok(),
            outcome: outcome.unwrap_or_else(|error| Outcome::Failed {
                reason: WithCauses(&error).to_string(),
            }),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }
}

pub(super) fn table(entries: &[Entry]) -> String {
    let mut table = Table::default();
    table.row(["VM", "PLACE", "RESULT"]);
    for Entry { place, vm, outcome } in entries {
        let result = match outcome {
            Outcome::Imported { vrot } => format!("imported as vRoT {vrot}"),
            Outcome::WouldBeImported => "can be imported".to_owned(),
            Outcome::Undone => "given back to swtpm".to_owned(),
            Outcome::WouldBeUndone => "can be given back to swtpm".to_owned(),
            Outcome::Failed { reason } => format!("FAILED: {reason}"),
        };
        let vm = vm.map(|vm| vm.to_string()).unwrap_or_default();
        table.row([vm, place.clone(), result]);
    }
    table.render()
}
