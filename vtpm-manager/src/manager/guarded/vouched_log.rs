//! The audit log, vouched for by the physical TPM as the store is: every batch names its newest line.

use std::sync::Arc;
use std::time::Duration;

use cert_chain::Digest32;
use guarded_state::disk::Batch;
use guarded_state::ledger::{AnchorPolicy, LogMark, MarkedLog};

use super::Guarded;
use crate::audit::{Actor, Event};
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;

/// Lines with which nothing of a vRoT became durable are vouched for this long after they were
/// written, at the latest.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same where each batch is written into the TPM's flash: lines about refusals must not wear it.
const INTERVAL_STRICT: Duration = Duration::from_secs(600);

impl Guarded {
    /// Holds the log against what the newest batch of the store says of it. A log that lacks that is
    /// continued, and says so.
    pub(super) async fn compare_log(&self, vouched: Option<LogMark>) -> Result<(), ManagerError> {
        let audit = Arc::clone(&self.audit);
        let missing = blocking(move || audit.compare(vouched)).await??;
        if let Some(missing) = missing {
            tracing::error!("the audit log was altered: {missing}");
            self.record_or_keep(vec![Event::AuditLogAltered {
                lines: missing.position.lines,
                head: missing.position.head,
                finding: missing.to_string().into(),
            }])
            .await;
        }
        Ok(())
    }

    /// How long a line may wait until the physical TPM vouches for it.
    pub(in crate::manager) fn log_interval(&self) -> Duration {
        match self.policy {
            AnchorPolicy::Strict => INTERVAL_STRICT,
            AnchorPolicy::Checkpoint(_) => INTERVAL,
        }
    }

    /// Has the physical TPM vouch for the newest line, unless it does.
    pub(in crate::manager) async fn vouch_for_log(&self) -> Result<(), ManagerError> {
        let status = self.journal.rollback_status();
        match (status, self.audit.mark()) {
            (Some(status), Some(mark)) if status.log != Some(mark) => {
                self.commit(Batch::default().marking_log()).await
            }
            _ => Ok(()),
        }
    }

    /// Lines that the physical TPM does not vouch for yet; all, while the store is not open.
    pub fn unvouched_lines(&self) -> u64 {
        let vouched = (self.journal.rollback_status()).and_then(|status| status.log);
        let lines = self.audit.end().entries;
        lines.saturating_sub(vouched.map_or(0, |mark| mark.newest.lines))
    }

    /// Carries out the order of an operator who accepts that lines are missing.
    pub async fn accept_log(&self, head: Digest32) -> Result<(), ManagerError> {
        let (audit, actor) = (Arc::clone(&self.audit), Actor::current());
        blocking(move || audit.accept(actor, head)).await??;
        self.vouch_for_log().await
    }
}
