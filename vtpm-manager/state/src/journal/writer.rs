//! The writer's thread: group commit.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::guarded_store::{GuardedStore, Transaction};
use super::health::{Health, RetriedBy};
use super::metrics::JournalMetrics;
use crate::disk::{Batch, StoreError};

/// A change that waits for the writer.
pub(super) struct Request {
    pub(super) change: Batch,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

/// Owns the receiving end of the queue, and commits what comes out of it.
pub(super) struct Writer {
    store: Arc<GuardedStore>,
    health: Arc<Health>,
    metrics: Arc<JournalMetrics>,
    clock: Runtime,
    /// After a checkpoint failed, the next try is not before this.
    checkpoint_after: Option<Instant>,
}

/// Between two tries to write a register of a TPM that does not answer: vRoTs answer at their
/// deadline meanwhile, and say that they are degraded.
const ANCHOR_RETRY: Duration = Duration::from_millis(200);
const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);
/// A writer whose last handle has gone does not wait for a dead TPM for ever.
const TRIES_AT_THE_END: u32 = 5;
/// Changes in one batch: bounds the memory of a transaction (a state has some 10 KiB).
const MAX_BATCH: usize = 1024;

/// What came of waiting.
enum Woken {
    Request(Request),
    Checkpoint,
    End,
}

impl Writer {
    pub(super) fn new(
        store: Arc<GuardedStore>,
        health: Arc<Health>,
        metrics: Arc<JournalMetrics>,
    ) -> io::Result<Self> {
        Ok(Self {
            store,
            health,
            metrics,
            clock: Builder::new_current_thread().enable_time().build()?,
            checkpoint_after: None,
        })
    }

    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            match self.wait(&mut requests) {
                Woken::Request(first) => self.serve(first, &mut requests),
                Woken::Checkpoint => self.checkpoint(),
                Woken::End => break,
            }
        }
        if let Err(error) = self.store.close() {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the durable rollback register was not written at the end"
            );
        }
    }

    /// Waits for a request, but not longer than until a checkpoint is due.
    fn wait(&self, requests: &mut mpsc::Receiver<Request>) -> Woken {
        let due = self
            .store
            .checkpoint_due()
            .max(self.checkpoint_due_by_retry());
        let next = self.clock.block_on(async {
            match due {
                Some(due) if due <= Instant::now() => None,
                Some(due) => tokio::time::timeout_at(due.into(), requests.recv())
                    .await
                    .ok(),
                None => Some(requests.recv().await),
            }
        });
        match next {
            None => Woken::Checkpoint,
            Some(Some(request)) => Woken::Request(request),
            Some(None) => Woken::End,
        }
    }

    fn checkpoint_due_by_retry(&self) -> Option<Instant> {
        self.store.checkpoint_due().and(self.checkpoint_after)
    }

    fn checkpoint(&mut self) {
        self.checkpoint_after = match self.store.checkpoint() {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, "the durable rollback register was not written");
                Some(Instant::now() + CHECKPOINT_RETRY)
            }
        };
    }

    fn serve(&self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        let mut transaction = self.store.begin();
        let mut batch = Batch::default();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match transaction.admit(&request.change) {
                Ok(()) => {
                    batch.append(request.change);
                    waiting.push(request.done);
                }
                Err(error) => drop(request.done.send(Err(error))),
            }
            next = (batch.len() < MAX_BATCH)
                .then(|| requests.try_recv().ok())
                .flatten();
        }
        let result = if batch.is_empty() {
            Ok(())
        } else {
            self.commit(transaction, batch, waiting.len(), requests)
        };
        for done in waiting {
            // Where the receiver was dropped, the result is not needed.
            let _ = done.send(result.clone());
        }
    }

    /// The one place where anything becomes durable. What the next batch will hold comes in
    /// meanwhile.
    fn commit(
        &self,
        transaction: Transaction<'_>,
        batch: Batch,
        changes: usize,
        requests: &mpsc::Receiver<Request>,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut tries = 0u32;
        let result = transaction.commit(batch, |error| {
            tracing::error!(%error, "a batch waits for the rollback register in the TPM");
            self.health.failed(Arc::new(error), RetriedBy::Writer);
            tries = tries.saturating_add(1);
            let is_abandoned = requests.is_closed() && tries > TRIES_AT_THE_END;
            if is_abandoned || self.health.is_overdue() {
                return false;
            }
            thread::sleep(ANCHOR_RETRY);
            true
        });
        self.metrics.count(began.elapsed(), changes, result.is_ok());
        match result {
            Ok(()) => {
                self.health.recovered();
                Ok(())
            }
            Err(error) => {
                self.health
                    .failed(Arc::new(error.clone()), RetriedBy::Caller);
                tracing::error!(%error, changes, "a batch was not written");
                Err(match self.health.is_overdue() {
                    true => StoreError::Closed,
                    false => error,
                })
            }
        }
    }
}
