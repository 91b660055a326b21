//! A store that was refused, accepted on an operator's order: its vRoTs go on in a new generation,
//! which verifiers see, and without what the audit log says was deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use api_types::Timestamp;
use backend_link::sealing::{Sealer, SealingError};
use cert_chain::{Generation, VrotId};

use super::Guarded;
use super::store_state::{StoreState, Turn, Vouched};
use crate::audit::Event;
use crate::keys::Keyring;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::{Lifecycle, StopCause, StoredVrot, VrotRecord};
use guarded_state::disk::{Batch, Part, StateBlob, Store, StoreError};
use guarded_state::journal::GuardError;
use guarded_state::ledger::{Boot, RecoveryRecord};

/// A store that was accepted.
pub(in crate::manager) struct Recovery {
    pub(in crate::manager) record: RecoveryRecord,
    pub(in crate::manager) vouched: Vouched,
    /// Whether the audit log has the line. Where it has not, the next manager writes it.
    pub(in crate::manager) recorded: Result<(), ManagerError>,
}

impl Guarded {
    /// Accepts the present store, on the order of an operator who names what was found. What is in
    /// it is to be taken over next.
    pub(in crate::manager) async fn recover(
        &self,
        turn: &Turn<'_>,
        accepted: &str,
    ) -> Result<Recovery, ManagerError> {
        if !matches!(turn.state(), StoreState::Refused { .. }) {
            // A store in use changes, so it cannot be compared.
            return Err(GuardError::NotRefused.into());
        }
        let guard = self.guard(turn).await?;
        let keyring = self.host.keyring().await?;
        let store = self.journal.store();
        let accepted = accepted.to_owned();
        self.record(Event::RecoveryOrdered {
            accepted: accepted.as_str().into(),
        })
        .await?;
        let deleted = self.record_unfinished_deletions(&store).await?;
        let (ledger, record) = blocking(move || {
            guard.recover(store.as_ref(), &accepted, |vrot, generation| {
                // A backup from before its deletion still has its key.
                if deleted.contains(&vrot) {
                    return Ok(Batch::default().delete(vrot));
                }
                raised(store.as_ref(), &keyring, vrot, generation)
            })
        })
        .await??;
        tracing::warn!(accepted = record.accepted, "the store was recovered");
        let recorded = self
            .record(Event::StoreRecovered {
                recovery: record.clone(),
            })
            .await;
        let vouched = self.unlock(turn, ledger, Boot::Unfinished).await?;
        Ok(Recovery {
            record,
            vouched,
            recorded,
        })
    }

    /// Writes the lines of deletions that the store has begun: what is accepted goes without them.
    /// Returns all that are written then.
    async fn record_unfinished_deletions(
        &self,
        store: &Arc<dyn Store>,
    ) -> Result<BTreeSet<VrotId>, ManagerError> {
        let store = Arc::clone(store);
        let tombstones = blocking(move || {
            let mut tombstones = Vec::new();
            for vrot in store.vrots()? {
                let record = store.read(vrot, Part::Record)?.unwrap_or_default();
                if let Ok(StoredVrot::Deleted(tombstone)) = StoredVrot::from_bytes(vrot, &record) {
                    tombstones.push(tombstone);
                }
            }
            Ok::<_, StoreError>(tombstones)
        });
        let tombstones = tombstones.await??;
        let mut recorded = self.recorded_deletions().await?;
        for tombstone in tombstones {
            if recorded.insert(tombstone.vrot) {
                self.record_deletion(&tombstone).await?;
            }
        }
        Ok(recorded)
    }
}

/// A vRoT in its new generation: the record says it, the state is sealed under it, and the
/// identity's certificate is due for renewal at the next start. What cannot be read any more is
/// removed; a state that does not open stays as it is, and its vRoT will not start.
fn raised(
    store: &dyn Store,
    keyring: &Arc<Keyring>,
    vrot: VrotId,
    generation: Generation,
) -> Result<Batch, StoreError> {
    let bytes = store.read(vrot, Part::Record)?.unwrap_or_default();
    let mut record = match StoredVrot::from_bytes(vrot, &bytes) {
        Ok(StoredVrot::Living(record)) => *record,
        Ok(StoredVrot::Deleted(_)) | Err(_) => return Ok(Batch::default().delete(vrot)),
    };
    let mut batch = Batch::default()
        .remove(vrot, Part::Volatile)
        .remove(vrot, Part::Saved);
    if let Some(state) = store.read(vrot, Part::Permanent)? {
        match sealed_anew(keyring, &record, generation, &state) {
            Some(state) => batch = batch.put(vrot, Part::Permanent, state),
            None => tracing::error!(%vrot, "its state does not open: it cannot be started"),
        }
    }
    record.generation = generation;
    // That was another one's: this one goes on from what is in the store, and says so.
    record.state_loss = None;
    // It is of a start that is over; every start measures for itself.
    record.launch = None;
    // What it could have gone on with is given up with its volatile state.
    if let Lifecycle::Suspended { .. } = record.lifecycle {
        record.lifecycle = Lifecycle::Stopped {
            since: Timestamp::now(),
            cause: StopCause::Ordered,
        };
    }
    record.identity.vik_issued_at = Timestamp::new(0);
    Ok(batch.followed_by(record.to_batch()))
}

fn sealed_anew(
    keyring: &Keyring,
    record: &VrotRecord,
    generation: Generation,
    state: &[u8],
) -> Option<Vec<u8>> {
    let vrot = record.vrot;
    let key = keyring.state_key(vrot, &record.state_key).ok()?;
    let blob = StateBlob::from_bytes(state).ok()?;
    let sealer = |generation: Generation| Sealer::new(&key, *vrot.as_bytes(), generation.number());
    let sealed = || -> Result<Vec<u8>, SealingError> {
        let opened = sealer(record.generation)?.open_permanent(&blob.sealed)?;
        // What a VMM carries is of the generation that was.
        sealer(generation)?.seal_permanent(&opened.state, None)
    };
    let sealed = sealed().ok()?;
    Some(StateBlob::new(blob.sequence, sealed).to_bytes())
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};
    use guarded_state::testing::MemoryStore;

    use super::*;
    use crate::vrot::example;

    #[test]
    fn a_suspended_vrot_in_a_new_generation_can_be_started_and_has_no_measured_launch() -> Result<()>
    {
        let store = MemoryStore::default();
        let mut suspended = example();
        let vrot = suspended.vrot;
        suspended.lifecycle = Lifecycle::Suspended {
            since: Timestamp::now(),
        };
        suspended.requires_launch = true;
        suspended.launch = Some(attestation::fixture::launch());
        assert!(suspended.lifecycle.check_start().is_err());
        let batch = (suspended.to_batch()).put(vrot, Part::Volatile, b"volatile".to_vec());
        store.commit(&batch)?;
        let keyring = Arc::new(Keyring::derive(&[7; 32])?);
        store.commit(&raised(&store, &keyring, vrot, Generation::new(2))?)?;

        let bytes = store.read(vrot, Part::Record)?.context("no record")?;
        let StoredVrot::Living(raised) = StoredVrot::from_bytes(vrot, &bytes)? else {
            anyhow::bail!("a tombstone");
        };
        assert_eq!(raised.generation, Generation::new(2));
        assert_eq!(raised.lifecycle.check_start(), Ok(()));
        // The launch that was measured before is over.
        assert_eq!(raised.launch, None);
        assert!(raised.requires_launch);
        assert_eq!(store.read(vrot, Part::Volatile)?, None);
        Ok(())
    }
}
