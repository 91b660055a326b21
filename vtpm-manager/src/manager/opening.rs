//! Opens the store, on order and by itself: held against the physical TPM, and what is in it taken
//! over.

use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use guarded_state::ledger::RecoveryRecord;
use tokio::time::{Instant, sleep};
use trust_anchor::AnchorError;

use super::error::ManagerError;
use super::factory::Factory;
use super::fleet::Fleet;
use super::guarded::{Guarded, StoreState, Turn, Vouched};
use crate::host::HostError;

/// Opens the store, and has its vRoTs taken over.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    guarded: Arc<Guarded>,
    factory: Arc<Factory>,
    fleet: Arc<Fleet>,
}

/// Between attempts to open a store that is out of reach.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

impl Opener {
    pub(super) fn new(guarded: Arc<Guarded>, factory: Arc<Factory>, fleet: Arc<Fleet>) -> Self {
        Self {
            guarded,
            factory,
            fleet,
        }
    }

    /// Whether vRoTs can be asked about. A store that was out of reach is tried again.
    pub(super) async fn ready(&self) -> Result<(), ManagerError> {
        match self.guarded.store_state() {
            StoreState::Blank | StoreState::Open(_) => Ok(()),
            StoreState::Opening { .. } => Err(ManagerError::StoreOpening),
            StoreState::Refused { refusal } => Err(ManagerError::StoreRefused { refusal }),
            StoreState::Unreachable { .. } => self.open().await,
        }
    }

    /// Holds the store against the anchor, and takes over what is in it if they agree. Else
    /// nothing is changed, and no vRoT can be started.
    pub(super) async fn open(&self) -> Result<(), ManagerError> {
        self.open_in(&self.guarded.turn().await).await
    }

    /// Sets the store up, where nothing is stored yet: part of `host init`. A host whose PCRs
    /// are not approved yet is left as it is; the approval does it then.
    pub(super) async fn initialise(&self) -> Result<(), ManagerError> {
        let mut turn = self.guarded.turn().await;
        turn.order_initialisation();
        match self.open_in(&turn).await {
            Err(ManagerError::Host(HostError::Anchor(
                AnchorError::NoApproval { .. } | AnchorError::PcrsNotApproved { .. },
            ))) => Ok(()),
            other => other,
        }
    }

    /// Accepts a store that was refused, on the order of an operator who names what was found.
    pub(super) async fn recover(&self, accepted: &str) -> Result<RecoveryRecord, ManagerError> {
        let turn = self.guarded.turn().await;
        let recovery = self.guarded.recover(&turn, accepted).await?;
        let served = self.take_over(&turn, recovery.vouched).await;
        served.inspect_err(|error| turn.failed(error))?;
        self.fleet.tell_of_generations();
        recovery.recorded?;
        Ok(recovery.record)
    }

    /// Tries to open a store that is out of reach, again and again: running vRoTs are degraded until
    /// it is open, and there may be no caller that asks for them. Finishes deletions as well, and has
    /// the physical TPM vouch for lines of the audit log that nothing else became durable after.
    pub(super) async fn keep_open(self) {
        let mut log_due = Instant::now() + self.guarded.log_interval();
        loop {
            sleep(RETRY_PAUSE).await;
            if self.guarded.is_open() && log_due <= Instant::now() {
                log_due = Instant::now() + self.guarded.log_interval();
                if let Err(error) = self.guarded.vouch_for_log().await {
                    let error = WithCauses(&error);
                    tracing::warn!(%error, "the physical TPM does not vouch for the newest lines of the audit log");
                }
            }
            match self.guarded.store_state() {
                StoreState::Open(_) if self.guarded.unfinished_deletions() > 0 => {
                    self.guarded.finish_deletions().await;
                }
                StoreState::Unreachable { .. } => {
                    if let Err(error) = self.open().await {
                        tracing::debug!(error = %WithCauses(&error), "the store stays out of reach");
                    }
                }
                _ => {}
            }
        }
    }

    async fn open_in(&self, turn: &Turn<'_>) -> Result<(), ManagerError> {
        let opened = match self.guarded.vouch(turn).await {
            Ok(Some(vouched)) => self.take_over(turn, vouched).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = &opened
            && !matches!(error, ManagerError::StoreRefused { .. })
        {
            turn.failed(error);
        }
        opened
    }

    async fn take_over(&self, turn: &Turn<'_>, vouched: Vouched) -> Result<(), ManagerError> {
        self.fleet.take_over().await?;
        turn.set(StoreState::Open(vouched));
        self.factory.wake();
        Ok(())
    }
}
