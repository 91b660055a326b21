//! Something that happened, before it has a number.

use api_types::Timestamp;
use api_types::wire::{Event, EventDetails, EventKind};
use cert_chain::{Tenant, VmId, VrotId};

/// Something that happened, without the number that it has in a sequence.
#[derive(Debug)]
pub(super) struct Happening {
    at: Timestamp,
    kind: EventKind,
    place: Option<Place>,
    details: EventDetails,
    /// Its rank among all.
    pub(super) order: u64,
}

/// The vRoT that something happens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The VM.
    pub vm: VmId,
    /// Its vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
}

impl Happening {
    pub(super) fn now(
        place: Option<Place>,
        kind: EventKind,
        details: EventDetails,
        order: u64,
    ) -> Self {
        Self {
            at: Timestamp::now(),
            kind,
            place,
            details,
            order,
        }
    }

    /// The event under a number of a sequence.
    pub(super) fn numbered(&self, number: u64) -> Event {
        let place = self.place.as_ref();
        Event {
            number,
            at: self.at,
            kind: self.kind.clone(),
            vm: place.map(|place| place.vm),
            vrot: place.map(|place| place.vrot),
            tenant: place.map(|place| place.tenant.clone()),
            details: self.details.clone(),
        }
    }
}
