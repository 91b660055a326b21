//! Whether the store may be used: what the physical TPM says of it, and what an operator does
//! about a refusal.

use std::sync::{Arc, Weak};
use std::time::Duration;

use api_types::{Timestamp, WithCauses};
use backend_link::sealing::{Sealer, SealingError};
use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Batch, Part, StateBlob, Store, StoreError};
use guarded_state::journal::{Guard, GuardError, Opening};
use guarded_state::ledger::{Boot, HostLedger, Recovered, RecoveryRecord, RollbackKeys};
use trust_anchor::AnchorError;

use super::store_state::{Initialisation, StoreState, Turn, Vouched};
use super::{Manager, ManagerError, blocking};
use crate::audit::Event;
use crate::host::HostError;
use crate::keys::Keyring;
use crate::registers::TpmRegisters;
use crate::vrot::{Lifecycle, StopCause, StoredVrot, VrotRecord};

impl Manager {
    /// Whether the store may be used.
    pub fn store_state(&self) -> StoreState {
        self.store.state()
    }

    /// Whether vRoTs can be asked about. A store that was out of reach is tried again.
    pub async fn ready(&self) -> Result<(), ManagerError> {
        match self.store.state() {
            StoreState::Blank | StoreState::Open(_) => Ok(()),
            StoreState::Opening { .. } => Err(ManagerError::StoreOpening),
            StoreState::Refused { refusal } => Err(ManagerError::StoreRefused { refusal }),
            StoreState::Unreachable { .. } => self.open_store().await,
        }
    }

    /// Holds the store against the anchor, and takes over what is in it if they agree. Else
    /// nothing is changed, and no vRoT can be started.
    pub async fn open_store(&self) -> Result<(), ManagerError> {
        self.open_store_in(&self.store.turn().await).await
    }

    async fn open_store_in(&self, turn: &Turn<'_>) -> Result<(), ManagerError> {
        let opened = match turn.state() {
            StoreState::Open(_) => return Ok(()),
            // A store is held against the anchor once: from then on, its ledger knows better.
            state => match state.vouched() {
                Some(vouched) => self.serve_store(turn, vouched).await,
                None => self.try_to_open(turn).await,
            },
        };
        if let Err(error) = &opened
            && !matches!(error, ManagerError::StoreRefused { .. })
        {
            turn.failed(error);
        }
        opened
    }

    /// Sets the store up, where nothing is stored yet: part of `host init`. A host whose PCRs
    /// are not approved yet is left as it is; the approval does it then.
    pub async fn initialise_store(&self) -> Result<(), ManagerError> {
        let mut turn = self.store.turn().await;
        turn.order_initialisation();
        match self.open_store_in(&turn).await {
            Err(ManagerError::Host(HostError::Anchor(
                AnchorError::NoApproval { .. } | AnchorError::PcrsNotApproved { .. },
            ))) => Ok(()),
            other => other,
        }
    }

    /// Accepts the present store, on the order of an operator who names what was found.
    pub async fn recover(&self, accepted: &str) -> Result<RecoveryRecord, ManagerError> {
        let turn = self.store.turn().await;
        if !matches!(turn.state(), StoreState::Refused { .. }) {
            // Nor is a store that is in use looked at: it changes meanwhile.
            return Err(GuardError::NotRefused.into());
        }
        let guard = self.guard(&turn).await?;
        let keyring = self.host.keyring().await?;
        let store = self.journal.store();
        let accepted = accepted.to_owned();
        self.record(Event::RecoveryOrdered {
            accepted: accepted.as_str().into(),
        })
        .await?;
        self.record_unfinished_burials(&store).await?;
        let audit = Arc::clone(&self.audit);
        let deleted = blocking(move || audit.deleted()).await??;
        let (ledger, recovery) = blocking(move || {
            guard.recover(store.as_ref(), &accepted, |vrot, generation| {
                // A backup from before its deletion still has its key.
                if deleted.contains(&vrot) {
                    return Ok(Batch::default().delete(vrot));
                }
                raised(store.as_ref(), &keyring, vrot, generation)
            })
        })
        .await??;
        tracing::warn!(accepted = recovery.accepted, "the store was recovered");
        let recorded = self
            .record(Event::StoreRecovered {
                recovery: recovery.clone(),
            })
            .await;
        self.unlock(&turn, ledger, Boot::Unfinished).await?;
        recorded?;
        Ok(recovery)
    }

    /// The lines of deletions that the store has begun: what is accepted goes without them.
    async fn record_unfinished_burials(&self, store: &Arc<dyn Store>) -> Result<(), ManagerError> {
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
        for tombstone in tombstones.await?? {
            self.record_burial(&tombstone).await?;
        }
        Ok(())
    }

    async fn try_to_open(&self, turn: &Turn<'_>) -> Result<(), ManagerError> {
        let guard = match self.guard(turn).await {
            Err(ManagerError::Host(HostError::Anchor(AnchorError::NotProvisioned))) => {
                turn.set(StoreState::Blank);
                tracing::info!("this host is not provisioned: waiting for `vtpmctl host init`");
                return Ok(());
            }
            Err(ManagerError::Host(HostError::Anchor(AnchorError::RootSecretMissing))) => {
                turn.set(StoreState::Blank);
                tracing::warn!("this host has no root secret: `vtpmctl host init` makes it");
                return Ok(());
            }
            other => other?,
        };
        let store = self.journal.store();
        match blocking(move || guard.open(store.as_ref())).await?? {
            Opening::Opened {
                ledger,
                boot,
                recovered,
            } => {
                let batch = ledger.head().epoch().number();
                tracing::info!(batch, ?boot, "the physical TPM vouches for the store");
                self.note_unrecorded(recovered).await?;
                self.record_or_keep(vec![Event::StoreOpened { batch, boot }])
                    .await;
                self.unlock(turn, *ledger, boot).await
            }
            Opening::Blank => self.set_up(turn).await,
            Opening::Refused(refused) => {
                let refusal = Box::new(refused.refusal().clone());
                turn.set(StoreState::Refused {
                    refusal: refusal.clone(),
                });
                self.record_or_keep(vec![Event::StoreRefused {
                    code: refusal.code(),
                    finding: refusal.to_string().into(),
                }])
                .await;
                Err(ManagerError::StoreRefused { refusal })
            }
        }
    }

    /// A manager that ended between a recovery and its line in the audit log left the recovery in
    /// the chain: its successor writes the line.
    async fn note_unrecorded(&self, recovered: Option<Recovered>) -> Result<(), ManagerError> {
        let Some(Recovered { batch, generation }) = recovered else {
            return Ok(());
        };
        let (audit, batch) = (Arc::clone(&self.audit), batch.number());
        if blocking(move || audit.tells_of_recovery(batch)).await?? {
            return Ok(());
        }
        self.record(Event::RecoveryFound { batch, generation })
            .await
    }

    async fn set_up(&self, turn: &Turn<'_>) -> Result<(), ManagerError> {
        if turn.initialisation() == Initialisation::NotOrdered {
            turn.set(StoreState::Blank);
            tracing::warn!("neither store nor rollback anchor: `vtpmctl host init` makes both");
            return Ok(());
        }
        let guard = self.guard(turn).await?;
        let store = self.journal.store();
        let ledger = blocking(move || guard.initialise(store.as_ref())).await??;
        self.unlock(turn, ledger, Boot::Unfinished).await
    }

    async fn unlock(
        &self,
        turn: &Turn<'_>,
        ledger: HostLedger,
        boot: Boot,
    ) -> Result<(), ManagerError> {
        let power_loss = ledger.head().power_loss();
        self.journal.unlock(ledger).await?;
        let vouched = Vouched { boot, power_loss };
        turn.set(StoreState::Opening {
            vouched: Some(vouched),
        });
        let served = self.serve_store(turn, vouched).await;
        served.inspect_err(|error| turn.failed(error))
    }

    async fn serve_store(&self, turn: &Turn<'_>, vouched: Vouched) -> Result<(), ManagerError> {
        self.take_over().await?;
        turn.set(StoreState::Open(vouched));
        self.pool.wake();
        Ok(())
    }

    /// Unseals the root secret, so a host whose boot was altered is told so here.
    async fn guard(&self, turn: &Turn<'_>) -> Result<Guard, ManagerError> {
        let anchor = self.host.anchor();
        let root = match anchor.root_secret().await {
            // Only on order: a host that lost its root secret must not go on with another one.
            Err(AnchorError::RootSecretMissing)
                if turn.initialisation() == Initialisation::Ordered =>
            {
                anchor.make_root_secret().await
            }
            other => other,
        };
        let root = root.map_err(HostError::from)?;
        let keys = RollbackKeys::derive(root.expose());
        Ok(Guard {
            registers: Box::new(TpmRegisters::new(anchor, &keys)),
            keys,
            policy: self.config.anchor_policy,
        })
    }
}

/// Tries to open a store that is out of reach, for as long as the manager lives: running vRoTs
/// are degraded until then, and nobody may be there to ask for them.
pub(super) async fn keep_trying(manager: Weak<Manager>) {
    loop {
        tokio::time::sleep(RETRY_PAUSE).await;
        let Some(manager) = manager.upgrade() else {
            return;
        };
        if manager.journal.is_overdue() {
            return;
        }
        if manager.burials.unfinished() > 0 && manager.store.is_open() {
            manager.finish_burials().await;
        }
        if matches!(manager.store_state(), StoreState::Unreachable { .. })
            && let Err(error) = manager.open_store().await
        {
            tracing::debug!(error = %WithCauses(&error), "the store stays out of reach");
        }
    }
}

const RETRY_PAUSE: Duration = Duration::from_secs(5);

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
    fn a_suspended_vrot_in_a_new_generation_can_be_started() -> Result<()> {
        let store = MemoryStore::default();
        let mut suspended = example();
        let vrot = suspended.vrot;
        suspended.lifecycle = Lifecycle::Suspended {
            since: Timestamp::now(),
        };
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
        assert_eq!(store.read(vrot, Part::Volatile)?, None);
        Ok(())
    }
}
