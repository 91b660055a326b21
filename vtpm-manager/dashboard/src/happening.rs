//! An event as the page shows it.

use api_types::Timestamp;
use api_types::wire::{Event, EventKind};
use cert_chain::{VmId, VrotId};
use serde::Serialize;

use crate::text::shown;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Happening {
    at: Timestamp,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<VmId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vrot: Option<VrotId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
}

impl Happening {
    /// Events that the manager does not keep any more.
    pub(crate) fn missed(from: u64, to: u64) -> Self {
        Self {
            at: Timestamp::now(),
            kind: "missed".to_owned(),
            vm: None,
            vrot: None,
            tenant: None,
            details: Some(format!("events {from} to {to}")),
        }
    }
}

impl From<Event> for Happening {
    fn from(event: Event) -> Self {
        Self {
            at: event.at,
            kind: shown(event.kind.name()),
            vm: event.vm,
            vrot: event.vrot,
            details: told(&event),
            tenant: event.tenant.map(|tenant| shown(tenant.as_str())),
        }
    }
}

/// What the row does not show as well.
fn told(event: &Event) -> Option<String> {
    let details = &event.details;
    let cause = match details.cause.as_deref() {
        // What was ordered needs no reason.
        Some("ordered") | None => None,
        Some("backend-ended") => Some("its backend ended by itself".to_owned()),
        Some(cause) => Some(shown(cause)),
    };
    let boot = details.boot.as_deref().map(shown);
    let raised = (details.generation).filter(|_| event.kind == EventKind::GenerationChanged);
    let generation = raised.map(|number| format!("generation {number}"));
    let batch = details.batch.map(|batch| format!("after batch {batch}"));
    let told: Vec<String> = [cause, boot, generation, batch]
        .into_iter()
        .flatten()
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}
