//! Opening the store: held against the physical TPM, set up where there is none, taken over where
//! the TPM vouches for it.

use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use guarded_state::journal::{Guard, Opening};
use guarded_state::ledger::{Boot, HostLedger, Recovered, RollbackKeys};
use trust_anchor::AnchorError;

use super::store_state::{Initialisation, StoreState, Turn, Vouched};
use crate::audit::Event;
use crate::host::HostError;
use crate::manager::{Manager, ManagerError, blocking};
use crate::registers::TpmRegisters;

impl Manager {
    /// Whether the store may be used.
    pub fn store_state(&self) -> StoreState {
        self.store.state()
    }

    /// Whether vRoTs can be asked about. A store that was out of reach is tried again.
    pub async fn ready(self: &Arc<Self>) -> Result<(), ManagerError> {
        match self.store.state() {
            StoreState::Blank | StoreState::Open(_) => Ok(()),
            StoreState::Opening { .. } => Err(ManagerError::StoreOpening),
            StoreState::Refused { refusal } => Err(ManagerError::StoreRefused { refusal }),
            StoreState::Unreachable { .. } => self.open_store().await,
        }
    }

    /// Holds the store against the anchor, and takes over what is in it if they agree. Else
    /// nothing is changed, and no vRoT can be started.
    pub async fn open_store(self: &Arc<Self>) -> Result<(), ManagerError> {
        self.open_store_in(&self.store.turn().await).await
    }

    async fn open_store_in(self: &Arc<Self>, turn: &Turn<'_>) -> Result<(), ManagerError> {
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
    pub async fn initialise_store(self: &Arc<Self>) -> Result<(), ManagerError> {
        let mut turn = self.store.turn().await;
        turn.order_initialisation();
        match self.open_store_in(&turn).await {
            Err(ManagerError::Host(HostError::Anchor(
                AnchorError::NoApproval { .. } | AnchorError::PcrsNotApproved { .. },
            ))) => Ok(()),
            other => other,
        }
    }

    async fn try_to_open(self: &Arc<Self>, turn: &Turn<'_>) -> Result<(), ManagerError> {
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
        if blocking(move || audit.has_recovery(batch)).await?? {
            return Ok(());
        }
        self.record(Event::RecoveryFound { batch, generation })
            .await
    }

    async fn set_up(self: &Arc<Self>, turn: &Turn<'_>) -> Result<(), ManagerError> {
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

    pub(in crate::manager) async fn unlock(
        self: &Arc<Self>,
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

    async fn serve_store(
        self: &Arc<Self>,
        turn: &Turn<'_>,
        vouched: Vouched,
    ) -> Result<(), ManagerError> {
        self.take_over().await?;
        turn.set(StoreState::Open(vouched));
        self.pool.wake();
        Ok(())
    }

    /// Unseals the root secret, so a host whose boot was altered is told so here.
    pub(in crate::manager) async fn guard(&self, turn: &Turn<'_>) -> Result<Guard, ManagerError> {
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

/// Tries to open a store that is out of reach, again and again: running vRoTs are degraded until it
/// is open, and there may be no caller that asks for them. Finishes deletions as well.
pub(in crate::manager) async fn keep_trying(manager: Arc<Manager>) {
    loop {
        tokio::time::sleep(RETRY_PAUSE).await;
        match manager.store.state() {
            StoreState::Open(_) if manager.deletions.unfinished() > 0 => {
                manager.finish_deletions().await;
            }
            StoreState::Unreachable { .. } => {
                if let Err(error) = manager.open_store().await {
                    tracing::debug!(error = %WithCauses(&error), "the store stays out of reach");
                }
            }
            _ => {}
        }
    }
}

const RETRY_PAUSE: Duration = Duration::from_secs(5);
