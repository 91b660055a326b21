//! What the audit log says of each vRoT, held against the store.
//!
//! An order's line is written before its change becomes durable, so that nothing happens unseen. A
//! manager that ends in between, or a store that does not take the change, leaves a line of what
//! did not happen: another one follows it then, with what is in the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use cert_chain::{Digest32, VrotId};

use super::Guarded;
use crate::audit::{ABSENT, Event};
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::VrotRecord;

impl Guarded {
    /// Writes a line for each vRoT that is otherwise than the log tells. Of a vRoT of which it does
    /// not tell at all, an earlier log did.
    pub(in crate::manager) async fn record_differences(
        &self,
        found: &BTreeMap<VrotId, VrotRecord>,
    ) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        let recorded = blocking(move || audit.last_recorded()).await??;
        // What is about to be deleted has its own line to come.
        let recorded = (recorded.into_iter()).filter(|(vrot, _)| !self.deletions.has(*vrot));
        let differing = recorded.filter_map(|(vrot, recorded)| {
            let record = found.get(&vrot);
            let state = record.map_or(ABSENT, |record| record.lifecycle.name());
            let certificate = record.and_then(certificate_of);
            let is_as_recorded = recorded.state == state
                && (recorded.certificate.is_none()
                    || recorded.certificate == certificate
                    || state == ABSENT);
            (!is_as_recorded).then_some(Event::VrotFound {
                vrot,
                state,
                certificate,
            })
        });
        let differing: Vec<Event> = differing.collect();
        if !differing.is_empty() {
            self.record_or_keep(differing).await;
        }
        Ok(())
    }

    /// The store did not take what the last line about a vRoT tells of: it is as this record says,
    /// or not there at all.
    pub(in crate::manager) async fn record_as_it_was(
        &self,
        vrot: VrotId,
        record: Option<&VrotRecord>,
    ) {
        let event = Event::VrotFound {
            vrot,
            state: record.map_or(ABSENT, |record| record.lifecycle.name()),
            certificate: record.and_then(certificate_of),
        };
        self.record_or_keep(vec![event]).await;
    }
}

fn certificate_of(record: &VrotRecord) -> Option<Digest32> {
    record.identity.vik_certificate_digest()
}
