//! Backends that ended without an order: recorded, and started again where the policy has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::{Timestamp, WithCauses};
use cert_chain::VrotId;
use tokio::sync::mpsc;

use super::Fleet;
use crate::audit::Event;
use crate::backend::{Ended, Ending, InstanceId};
use crate::manager::counters::Counter;
use crate::manager::error::ManagerError;
use crate::vrot::StopCause;

/// Between attempts to record the end of a backend.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What became of the news that a backend has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    Ended,
    /// It was noted before, or is left to the next manager.
    Nothing,
}

/// The end of a backend that was not ordered, on its way into the store.
#[derive(Debug)]
pub(super) struct End {
    vrot: VrotId,
    /// Which backend; none, if there was none since the manager started.
    instance: Option<InstanceId>,
    reason: String,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Noticed,
    Counted,
    Logged,
}

impl Fleet {
    /// Starts a vRoT whose backend ended by itself from its last durable state, if the policy
    /// allows it. No guest goes on with it: its VMM has lost the connection, and a new one
    /// begins with a reset, as a TPM does whose PCRs are empty.
    async fn start_again(self: &Arc<Self>, id: VrotId) {
        let Some(vrot) = self.registry.find_vrot(id) else {
            return;
        };
        let limit = self.config.backend_restarts_per_hour;
        if !vrot.admits_restart(limit, Instant::now()) {
            tracing::error!(vrot = %id, limit, "it stays stopped: its backend ended too often");
            return;
        }
        match self.start(id.into()).await {
            Ok(_) => tracing::warn!(vrot = %id, "started again from its last durable state"),
            Err(error) => tracing::error!(vrot = %id, %error, "it could not be started again"),
        }
    }

    /// Records the end of a vRoT's backend. What was done of it is not done again when this is
    /// called anew after a failure.
    pub(super) async fn note_end(&self, end: &mut End) -> Result<Noted, ManagerError> {
        let id = end.vrot;
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Ok(Noted::Nothing);
        };
        let _gate = vrot.gate.lock().await;
        let mut record = vrot.record_to_change();
        let present = vrot.backend().map(|backend| backend.instance());
        // An end may be heard of late, when it was stopped or another one runs already.
        if !record.lifecycle.is_running() || present != end.instance {
            return Ok(Noted::Nothing);
        }
        if end.progress == Progress::Noticed {
            tracing::error!(vrot = %id, reason = end.reason, "the backend ended by itself");
            self.counters.increment(Counter::BackendsEnded);
            end.progress = Progress::Counted;
        }
        let loss = self.unrecorded_loss(&record)?;
        if end.progress == Progress::Counted {
            let mut events = vec![Event::BackendEnded {
                vrot: id,
                reason: end.reason.as_str().into(),
            }];
            events.extend(loss.map(|loss| loss.event(&record)));
            self.guarded.record_all(events).await?;
            end.progress = Progress::Logged;
        }
        record.state_loss = loss.or(record.state_loss);
        record.lifecycle = record
            .lifecycle
            .stop(StopCause::BackendEnded, Timestamp::now())?;
        record.launch = None;
        self.guarded.commit(record.to_batch()).await?;
        if let Err(error) = self.folder(id).forget_loss() {
            tracing::warn!(vrot = %id, %error, "a file is left behind");
        }
        vrot.set_backend(None);
        vrot.set_record(record);
        Ok(Noted::Ended)
    }
}

impl End {
    pub(super) fn noticed(vrot: VrotId, instance: Option<InstanceId>, reason: &str) -> Self {
        Self {
            vrot,
            instance,
            reason: reason.to_owned(),
            progress: Progress::Noticed,
        }
    }

    /// Tries until it is recorded: a vRoT that is called running and has no backend can neither
    /// be used nor started. A manager that ends leaves it to the next one.
    pub(super) async fn record_at_last(mut self, fleet: &Fleet) -> Noted {
        loop {
            match fleet.note_end(&mut self).await {
                Ok(noted) => return noted,
                Err(error) => {
                    let vrot = self.vrot;
                    let error = WithCauses(&error);
                    tracing::error!(%vrot, %error, "the end of a backend is not recorded yet");
                }
            }
            if !fleet.background.pause(RETRY_PAUSE).await {
                return Noted::Nothing;
            }
        }
    }

    /// The same, and then another backend is started, as the policy has it.
    pub(super) async fn record_and_start_again(self, fleet: &Arc<Fleet>) {
        let vrot = self.vrot;
        if self.record_at_last(fleet).await == Noted::Ended && !fleet.background.is_ending() {
            fleet.start_again(vrot).await;
        }
    }
}

/// Notes each end of a backend that was not ordered. Each in its own task: recording may have to
/// wait for the disk, opening a state takes time, and other backends may have ended.
pub(super) async fn note_endings(
    fleet: Arc<Fleet>,
    mut endings: mpsc::UnboundedReceiver<(VrotId, Ended)>,
) {
    while let Some((vrot, ended)) = endings.recv().await {
        if let Ending::Unordered { reason } = ended.ending {
            let end = End::noticed(vrot, Some(ended.instance), &reason);
            let noting = Arc::clone(&fleet);
            (fleet.background).spawn(async move { end.record_and_start_again(&noting).await });
        }
    }
}
