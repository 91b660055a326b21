//! What followers are told that no record says: how it stands with backends, and what the host went
//! through.

use std::collections::BTreeSet;

use api_types::wire::{EventDetails, EventKind};
use guarded_state::ledger::Boot;
use tokio::sync::watch;
use vrot_events::{EventLog, Place};

use super::Fleet;
use crate::backend::{Backend, Observed};
use crate::manager::happenings::generation;
use crate::manager::registry::Vrot;

impl Fleet {
    /// Tells what becomes of a backend, to its end. That one is degraded that an earlier manager left
    /// is told as well.
    pub(super) fn observe(&self, vrot: &Vrot, backend: &Backend) {
        let observations = backend.observations();
        let before = Observed {
            degraded: false,
            ..*observations.borrow()
        };
        let (events, place) = (self.events.clone(), vrot.place());
        let telling = async move { tell(&events, &place, before, observations).await };
        self.background.until_the_end(telling);
    }

    /// Tells those that have VMs here that the host was restarted, once for each start of the manager.
    pub(super) fn tell_of_boot(&self) {
        let boot = self.guarded.vouched().map(|vouched| vouched.boot);
        let is_restart = matches!(
            boot,
            Some(Boot::AfterShutdown | Boot::AfterPowerLoss { .. })
        );
        let (Some(boot), true, false) = (boot, is_restart, self.compared.is_cancelled()) else {
            return;
        };
        let records = (self.registry.all().into_iter()).map(|vrot| vrot.record().tenant.clone());
        let tenants: BTreeSet<_> = records.collect();
        let details = EventDetails {
            boot: Some(boot.name().to_owned()),
            ..EventDetails::default()
        };
        (self.events).tell_all(&tenants, EventKind::HostRestarted, details);
    }

    /// Tells of the generations that vRoTs have got while none of them ran.
    pub(in crate::manager) fn tell_of_generations(&self) {
        for vrot in self.registry.all() {
            vrot.tell(EventKind::GenerationChanged, generation(&vrot.record()));
        }
    }
}

async fn tell(
    events: &EventLog,
    place: &Place,
    mut before: Observed,
    mut observations: watch::Receiver<Observed>,
) {
    loop {
        let now = *observations.borrow_and_update();
        for kind in differences(before, now) {
            events.tell(place.clone(), kind, EventDetails::default());
        }
        before = now;
        if observations.changed().await.is_err() {
            return;
        }
    }
}

fn differences(before: Observed, now: Observed) -> impl Iterator<Item = EventKind> {
    let attached = (before.attached != now.attached).then_some(match now.attached {
        true => EventKind::Attached,
        false => EventKind::Detached,
    });
    let degraded = (before.degraded != now.degraded).then_some(match now.degraded {
        true => EventKind::Degraded,
        false => EventKind::Durable,
    });
    attached.into_iter().chain(degraded)
}
