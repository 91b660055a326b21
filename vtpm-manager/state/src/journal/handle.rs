//! The handle to the store's writer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cert_chain::VrotId;
use tokio::sync::{mpsc, oneshot};

use super::guarded_store::GuardedStore;
use super::health::{Health, Stall};
use super::metrics::JournalMetrics;
use super::writer::{Request, Writer};
use crate::disk::{Batch, Part, Store, StoreError};
use crate::ledger::{HostLedger, MarkedLog, RollbackStatus};

/// A handle to the writer's queue. The writer ends, with nothing left undone, when the last
/// handle goes.
#[derive(Clone)]
pub struct Journal(Arc<Handle>);

/// A change on its way to the disk; ready when it is durable, or was given up.
#[must_use = "a change is durable only when this is ready"]
pub struct Commit(oneshot::Receiver<Result<(), StoreError>>);

/// Changes that may wait. Each running vRoT has a few on the way at most; beyond this number
/// those who bring more wait for their turn.
const QUEUE: usize = 4096;

struct Handle {
    sender: Option<mpsc::Sender<Request>>,
    store: Arc<GuardedStore>,
    health: Arc<Health>,
    metrics: Arc<JournalMetrics>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    /// Waits for the last commit, so that the store's file is closed when this returns.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Journal {
    /// Starts the writer's thread. The store is locked until [`Journal::unlock`].
    pub fn start_locked(store: Arc<dyn Store>) -> std::io::Result<Self> {
        let (sender, requests) = mpsc::channel(QUEUE);
        let metrics = Arc::new(JournalMetrics::default());
        let store = Arc::new(GuardedStore::locked(store));
        let health = Arc::new(Health::default());
        let writer = Writer::new(
            Arc::clone(&store),
            Arc::clone(&health),
            Arc::clone(&metrics),
        )?;
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(requests))?;
        Ok(Self(Arc::new(Handle {
            sender: Some(sender),
            store,
            health,
            metrics,
            thread: Some(thread),
        })))
    }

    /// The store itself, for what decides whether it may be unlocked.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.0.store.store())
    }

    /// Unlocks the store: this ledger says that it is the newest one, and every batch goes
    /// through it from now on.
    pub async fn unlock(&self, ledger: HostLedger) -> Result<(), StoreError> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.unlock(ledger)).await?;
        // The writer has to learn of the ledger's next checkpoint.
        self.commit(Batch::default()).await
    }

    /// From now on, each batch names the newest line of this log.
    pub fn mark(&self, log: Arc<dyn MarkedLog>) {
        self.0.store.mark(log);
    }

    /// The ledger's position after the last batch; `None` while the store is locked. Does not
    /// wait, not even while a batch waits for disk or TPM.
    pub fn rollback_status(&self) -> Option<RollbackStatus> {
        self.0.store.status()
    }

    /// Why nothing becomes durable at the moment, if that is so.
    pub fn stall(&self) -> Option<Stall> {
        self.0.health.stall()
    }

    /// The manager ends: what the disk or the TPM does not take within this time is given up, and
    /// what fails after it is not to be tried again: the store is [closed](StoreError::Closed).
    pub fn end_within(&self, time: Duration) {
        self.0.health.end_within(time);
    }

    /// Queues a change. Changes become durable in the order in which they were queued.
    pub async fn submit(&self, change: Batch) -> Result<Commit, StoreError> {
        let (done, commit) = oneshot::channel();
        let sender = self.0.sender.as_ref().ok_or(StoreError::Closed)?;
        sender
            .send(Request { change, done })
            .await
            .map_err(|_| StoreError::Closed)?;
        Ok(Commit(commit))
    }

    /// Makes a change durable.
    pub async fn commit(&self, change: Batch) -> Result<(), StoreError> {
        self.submit(change).await?.await
    }

    /// What was committed last. Contents with another digest are refused.
    pub async fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.read(vrot, part)).await?
    }

    /// Every vRoT of which anything is kept.
    pub async fn vrots(&self) -> Result<Vec<VrotId>, StoreError> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.store().vrots()).await?
    }

    /// What the writer has done so far.
    pub fn metrics(&self) -> &JournalMetrics {
        &self.0.metrics
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}
