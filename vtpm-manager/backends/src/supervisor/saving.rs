//! The state that a backend pushes, on its way into the store.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use backend_link::message::ToBackend;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::{RETRY_PAUSE, Supervisor};
use crate::BackendError;
use crate::background::Background;
use crate::folder::RuntimeFolder;
use crate::order::{GuestRole, Role};
use guarded_state::disk::{Batch, Part, StateBlob, StoreError};

/// The commit of one state.
pub(super) struct Saving {
    pub(super) number: u64,
    pub(super) blob: StateBlob,
    pub(super) attempt: Attempt,
}

pub(super) type Attempt = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

impl Supervisor {
    /// One commit is done: tells the backend, or tries again.
    pub(super) async fn saved(
        &mut self,
        result: Result<(), StoreError>,
    ) -> Result<(), BackendError> {
        let (Some(saving), Role::Guest(role)) = (self.saving.take(), &mut self.role) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        let next = match result {
            Ok(()) => {
                let sequence = saving.blob.sequence;
                outcome = self
                    .connection
                    .send(&ToBackend::Persisted { sequence })
                    .await;
                settled(&mut self.settling, saving.number);
                (self.unsaved.take()).map(|(number, blob)| (number, blob, pause(role)))
            }
            Err(StoreError::Closed) => {
                tracing::error!(vrot = %self.folder.vrot(),
                    "state is not durable, and the manager ends: the backend keeps it, if it lives");
                None
            }
            Err(error) => {
                // Whether its guest was answered meanwhile, the backend says: it may still wait.
                tracing::error!(vrot = %self.folder.vrot(), %error, "state is not durable yet");
                let newest = self.unsaved.take();
                let (number, blob) = newest.unwrap_or((saving.number, saving.blob));
                Some((number, blob, RETRY_PAUSE))
            }
        };
        self.saving = next.map(|(number, blob, pause)| Saving {
            number,
            attempt: save(role, &self.folder, &blob, pause),
            blob,
        });
        if self.saving.is_none() {
            // What is waited for will not be saved: dropping the sender tells that.
            self.settling = None;
        }
        outcome
    }

    pub(super) fn settle(&mut self, done: oneshot::Sender<()>) {
        let newest = self.unsaved.as_ref().map(|(number, _)| *number);
        match newest.or(self.saving.as_ref().map(|saving| saving.number)) {
            Some(number) => self.settling = Some((number, done)),
            None => drop(done.send(())),
        }
    }

    /// The last handle is gone. A backend with a guest goes on; one without is of no use to anybody,
    /// and is ended.
    pub(super) async fn leave(mut self) {
        if let Role::Guest(_) = self.role {
            return self.leave_running().await;
        }
        self.process.kill();
        self.process.ended().await;
        if let Err(error) = self.folder.remove() {
            tracing::warn!(vrot = %self.folder.vrot(), %error, "a folder is left behind");
        }
    }

    /// The manager ends. What the backend has pushed is made durable still, unless disk or TPM
    /// do not take it: a backend gives its next manager what this one did not acknowledge. It is
    /// told that its manager leaves, so that its guest does not wait for the next one.
    pub(super) async fn leave_running(mut self) {
        while self.saving.is_some() {
            let result = attempt(&mut self.saving, &self.background).await;
            if result.is_err() {
                return;
            }
            // One that has ended is not told, and has the same claim.
            let _ = self.saved(result).await;
        }
        let _ = self.connection.send(&ToBackend::Leaving).await;
    }
}

/// Answers `Settle`, if this is the state that it waits for.
fn settled(settling: &mut Option<(u64, oneshot::Sender<()>)>, number: u64) {
    if let Some((_, waiting)) = settling.take_if(|(awaited, _)| *awaited <= number) {
        // The receiver may be gone.
        let _ = waiting.send(());
    }
}

/// What the next change of state has to wait: it may be beyond its vRoT's share of the disk.
pub(super) fn pause(role: &mut GuestRole) -> Duration {
    let pause = role.share.pause(std::time::Instant::now());
    if !pause.is_zero() {
        role.journal.metrics().count_held_back();
    }
    pause
}

pub(super) fn save(
    role: &GuestRole,
    folder: &RuntimeFolder,
    blob: &StateBlob,
    pause: Duration,
) -> Attempt {
    let journal = role.journal.clone();
    let change = Batch::default().put(folder.vrot(), Part::Permanent, blob.to_bytes());
    Box::pin(async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        journal.commit(change).await
    })
}

/// The end of the commit under way; never, if there is none.
pub(super) async fn attempt(
    saving: &mut Option<Saving>,
    background: &Background,
) -> Result<(), StoreError> {
    match saving {
        Some(saving) => {
            let saved = background.unless_ended(saving.attempt.as_mut()).await;
            saved.unwrap_or(Err(StoreError::Closed))
        }
        None => pending().await,
    }
}
