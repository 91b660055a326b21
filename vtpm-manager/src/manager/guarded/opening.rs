//! Opening the store: held against the physical TPM, and set up where there is none. Taking over
//! what is in it is the next step, and not taken here.

use std::sync::Arc;

use guarded_state::journal::{Guard, Opening};
use guarded_state::ledger::{Boot, HostLedger, Recovered, RollbackKeys};
use trust_anchor::AnchorError;

use super::Guarded;
use super::store_state::{Initialisation, StoreState, Turn, Vouched};
use crate::audit::Event;
use crate::host::HostError;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::registers::TpmRegisters;

impl Guarded {
    /// Waits for the right to open, set up or recover the store.
    pub(in crate::manager) async fn turn(&self) -> Turn<'_> {
        self.gate.turn().await
    }

    /// The same right, if it is free.
    pub(in crate::manager) fn try_turn(&self) -> Option<Turn<'_>> {
        self.gate.try_turn().ok()
    }

    /// Holds the store against the anchor. What the ledger says, if they agree and what is in the
    /// store is still to be taken over; none, if it is open, or if nothing was ever stored here.
    pub(in crate::manager) async fn vouch(
        &self,
        turn: &Turn<'_>,
    ) -> Result<Option<Vouched>, ManagerError> {
        match turn.state() {
            StoreState::Open(_) => Ok(None),
            // A store is held against the anchor once: from then on, its ledger knows better.
            state => match state.vouched() {
                Some(vouched) => Ok(Some(vouched)),
                None => self.try_to_open(turn).await,
            },
        }
    }

    async fn try_to_open(&self, turn: &Turn<'_>) -> Result<Option<Vouched>, ManagerError> {
        let guard = match self.guard(turn).await {
            Err(ManagerError::Host(HostError::Anchor(AnchorError::NotProvisioned))) => {
                turn.set(StoreState::Blank);
                tracing::info!("this host is not provisioned: waiting for `vtpmctl host init`");
                return Ok(None);
            }
            Err(ManagerError::Host(HostError::Anchor(AnchorError::RootSecretMissing))) => {
                turn.set(StoreState::Blank);
                tracing::warn!("this host has no root secret: `vtpmctl host init` makes it");
                return Ok(None);
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
                self.unlock(turn, *ledger, boot).await.map(Some)
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
        if blocking(move || audit.has_recovery(batch)).await?? {
            return Ok(());
        }
        self.record(Event::RecoveryFound { batch, generation })
            .await
    }

    async fn set_up(&self, turn: &Turn<'_>) -> Result<Option<Vouched>, ManagerError> {
        if turn.initialisation() == Initialisation::NotOrdered {
            turn.set(StoreState::Blank);
            tracing::warn!("neither store nor rollback anchor: `vtpmctl host init` makes both");
            return Ok(None);
        }
        let guard = self.guard(turn).await?;
        let store = self.journal.store();
        let ledger = blocking(move || guard.initialise(store.as_ref())).await??;
        self.unlock(turn, ledger, Boot::Unfinished).await.map(Some)
    }

    pub(super) async fn unlock(
        &self,
        turn: &Turn<'_>,
        ledger: HostLedger,
        boot: Boot,
    ) -> Result<Vouched, ManagerError> {
        self.compare_log(ledger.head().log()).await?;
        let power_loss = ledger.head().power_loss();
        self.journal.unlock(ledger).await?;
        let vouched = Vouched { boot, power_loss };
        turn.set(StoreState::Opening {
            vouched: Some(vouched),
        });
        Ok(vouched)
    }

    /// Unseals the root secret, so a host whose boot was altered is told so here.
    pub(super) async fn guard(&self, turn: &Turn<'_>) -> Result<Guard, ManagerError> {
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
            policy: self.policy,
        })
    }
}
