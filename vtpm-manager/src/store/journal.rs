//! The one writer of the store: group commit.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cert_chain::VrotId;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::gate::{Gate, Key};
use super::health::{Cure, Health, Trouble};
use super::{Batch, Part, Store, StoreError};
use crate::rollback::{HostLedger, RollbackStatus};

/// A handle to the writer's queue. The writer ends, with nothing left undone, when the last
/// handle goes.
#[derive(Clone)]
pub struct Journal(Arc<Handle>);

/// A change on its way to the disk; ready when it is durable, or was given up.
#[must_use = "a change is durable only when this is ready"]
pub struct Commit(oneshot::Receiver<Result<(), StoreError>>);

/// What the writer has done so far.
#[derive(Debug, Default)]
pub struct JournalMetrics {
    commits: AtomicU64,
    changes: AtomicU64,
    failures: AtomicU64,
    held_back: AtomicU64,
    microseconds: AtomicU64,
}

/// Changes that may wait. Each running vRoT has a few on the way at most; beyond this number
/// those who bring more wait for their turn.
const QUEUE: usize = 4096;
/// Between two tries to write a register of a TPM that does not answer: vRoTs answer at their
/// deadline meanwhile, and say that they are degraded.
const ANCHOR_RETRY: Duration = Duration::from_millis(200);
const CHECKPOINT_RETRY: Duration = Duration::from_secs(10);
/// A writer whose last handle has gone does not wait for a dead TPM for ever.
const TRIES_AT_THE_END: u32 = 5;
/// Changes in one batch: bounds the memory of a transaction (a state has some 10 KiB).
const MAX_BATCH: usize = 1024;

impl Journal {
    /// Starts the writer's thread. The store is locked until [`Journal::unlock`].
    pub fn start_locked(store: Arc<dyn Store>) -> std::io::Result<Self> {
        let (sender, requests) = mpsc::channel(QUEUE);
        let metrics = Arc::new(JournalMetrics::default());
        let gate = Arc::new(Gate::locked(store));
        let health = Arc::new(Health::default());
        let writer = Writer {
            gate: Arc::clone(&gate),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            clock: Builder::new_current_thread().enable_time().build()?,
            checkpoint_after: None,
        };
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(requests))?;
        Ok(Self(Arc::new(Handle {
            sender: Some(sender),
            gate,
            health,
            metrics,
            thread: Some(thread),
        })))
    }

    /// The store itself, for what decides whether it may be unlocked.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.0.gate.store())
    }

    /// Unlocks the store: this ledger says that it is the newest one, and every batch goes
    /// through it from now on.
    pub async fn unlock(&self, ledger: HostLedger) -> Result<(), StoreError> {
        let gate = Arc::clone(&self.0.gate);
        blocking(move || gate.unlock(ledger)).await?;
        // The writer has to learn of the ledger's next checkpoint.
        self.commit(Batch::default()).await
    }

    /// How it stood with the rollback anchor after the last batch; `None` while the store is
    /// locked. Waits for nothing: who looks may be looking for why a batch does.
    pub fn rollback_status(&self) -> Option<RollbackStatus> {
        self.0.gate.status()
    }

    /// Why nothing becomes durable at the moment, if that is so.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.health.trouble()
    }

    /// The manager ends: what the disk or the TPM does not take within this time is given up.
    pub fn end_within(&self, time: Duration) {
        self.0.health.end_within(time);
    }

    /// Whether the manager should have ended already: nothing is to be tried again.
    pub fn is_overdue(&self) -> bool {
        self.0.health.is_overdue()
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

    /// What was committed last, and nothing else: what somebody else put there is refused.
    pub async fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
        let gate = Arc::clone(&self.0.gate);
        blocking(move || gate.read(vrot, part)).await?
    }

    /// Every vRoT of which anything is kept.
    pub async fn vrots(&self) -> Result<Vec<VrotId>, StoreError> {
        let gate = Arc::clone(&self.0.gate);
        blocking(move || gate.store().vrots()).await?
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

impl JournalMetrics {
    /// Batches made durable.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Changes made durable.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Batches that could not be written.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Changes that waited because their vRoT had used its share of the disk.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// Counts such a change.
    pub fn count_held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Time spent committing.
    pub fn seconds(&self) -> f64 {
        std::time::Duration::from_micros(self.microseconds.load(Ordering::Relaxed)).as_secs_f64()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

struct Request {
    change: Batch,
    done: oneshot::Sender<Result<(), StoreError>>,
}

struct Handle {
    sender: Option<mpsc::Sender<Request>>,
    gate: Arc<Gate>,
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

struct Writer {
    gate: Arc<Gate>,
    health: Arc<Health>,
    metrics: Arc<JournalMetrics>,
    clock: Runtime,
    /// After a checkpoint failed, the next try is not before this.
    checkpoint_after: Option<Instant>,
}

/// What came of waiting.
enum Woken {
    Request(Request),
    Checkpoint,
    End,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            match self.wait(&mut requests) {
                Woken::Request(first) => self.serve(first, &mut requests),
                Woken::Checkpoint => self.checkpoint(),
                Woken::End => break,
            }
        }
        if let Err(error) = self.gate.close() {
            tracing::error!(%error, "the durable rollback register was not written at the end");
        }
    }

    /// Waits for a request, but not longer than until a checkpoint is due.
    fn wait(&self, requests: &mut mpsc::Receiver<Request>) -> Woken {
        let due = self
            .gate
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
        self.gate.checkpoint_due().and(self.checkpoint_after)
    }

    fn checkpoint(&mut self) {
        self.checkpoint_after = match self.gate.checkpoint() {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, "the durable rollback register was not written");
                Some(Instant::now() + CHECKPOINT_RETRY)
            }
        };
    }

    fn serve(&self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        let mut key = self.gate.key();
        let mut batch = Batch::default();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match key.admit(&request.change) {
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
            self.commit(key, batch, waiting.len(), requests)
        };
        for done in waiting {
            // Who does not wait any more does not want to know.
            let _ = done.send(result.clone());
        }
    }

    /// The one place where anything becomes durable. What the next batch will hold comes in
    /// meanwhile.
    fn commit(
        &self,
        key: Key<'_>,
        batch: Batch,
        changes: usize,
        requests: &mpsc::Receiver<Request>,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut tries = 0u32;
        let result = key.commit(batch, |error| {
            tracing::error!(%error, "a batch waits for the rollback register in the TPM");
            self.health.failed(error, Cure::WriterTries);
            tries = tries.saturating_add(1);
            let is_abandoned = requests.is_closed() && tries > TRIES_AT_THE_END;
            if is_abandoned || self.health.is_overdue() {
                return false;
            }
            thread::sleep(ANCHOR_RETRY);
            true
        });
        let elapsed = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let metrics = &self.metrics;
        metrics.microseconds.fetch_add(elapsed, Ordering::Relaxed);
        match &result {
            Ok(()) => {
                self.health.recovered();
                metrics.commits.fetch_add(1, Ordering::Relaxed);
                metrics.changes.fetch_add(changes as u64, Ordering::Relaxed);
            }
            Err(error) => {
                self.health.failed(error, Cure::NextChange);
                metrics.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, changes, "a batch was not written");
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc as blocking;

    use cert_chain::Generation;

    use super::super::{MAX_CONTENTS, MemoryStore, StoredEvidence};
    use super::*;
    use crate::rollback::fake_registers::FakeRegisters;
    use crate::rollback::{AnchorPolicy, Guard, RollbackKeys};

    /// Holds each commit until it is let go, and fails the ones that are to fail.
    struct GatedStore {
        memory: MemoryStore,
        gate: Mutex<blocking::Receiver<bool>>,
    }

    impl Store for GatedStore {
        fn vrots(&self) -> Result<Vec<VrotId>, StoreError> {
            self.memory.vrots()
        }

        fn read(&self, vrot: VrotId, part: Part) -> Result<Option<Vec<u8>>, StoreError> {
            self.memory.read(vrot, part)
        }

        fn evidence(&self) -> Result<StoredEvidence, StoreError> {
            self.memory.evidence()
        }

        fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
            let gate = self.gate.lock().map_err(|_| StoreError::Closed)?;
            match gate.recv() {
                Ok(true) => self.memory.commit(batch),
                _ => Err(StoreError::Foreign { what: "a fault" }),
            }
        }
    }

    async fn gated() -> anyhow::Result<(blocking::Sender<bool>, Arc<GatedStore>, Journal)> {
        let (open, gate) = blocking::channel();
        let memory = MemoryStore::default();
        let guard = Guard {
            keys: RollbackKeys::derive(&[7; 32]),
            registers: Box::new(FakeRegisters::blank()),
            policy: AnchorPolicy::default(),
        };
        let ledger = guard.initialise(&memory)?;
        let store = Arc::new(GatedStore {
            memory,
            gate: Mutex::new(gate),
        });
        let journal = Journal::start_locked(Arc::clone(&store) as Arc<dyn Store>)?;
        journal.unlock(ledger).await?;
        Ok((open, store, journal))
    }

    fn change(vrot: VrotId, contents: &[u8]) -> Batch {
        Batch::default()
            .put_record(vrot, Generation::new(1), b"record".to_vec())
            .put(vrot, Part::Permanent, contents.to_vec())
    }

    #[tokio::test]
    async fn what_comes_during_a_commit_shares_the_next_one() -> anyhow::Result<()> {
        let (open, store, journal) = gated().await?;
        let mut commits = Vec::new();
        for number in 0..100u8 {
            let vrot = VrotId::random();
            commits.push((vrot, journal.submit(change(vrot, &[number])).await?));
        }
        // However many the first commit took along, the second takes all others.
        open.send(true)?;
        open.send(true)?;
        for (vrot, commit) in commits {
            commit.await?;
            assert!(store.read(vrot, Part::Permanent)?.is_some());
        }
        // And one set the store up.
        assert!(store.memory.commits() <= 3);
        assert_eq!(journal.metrics().changes(), 100);
        Ok(())
    }

    #[tokio::test]
    async fn the_later_of_two_changes_counts() -> anyhow::Result<()> {
        let (open, store, journal) = gated().await?;
        let vrot = VrotId::random();
        let first = journal.submit(change(vrot, b"first")).await?;
        let second = journal.submit(change(vrot, b"second")).await?;
        open.send(true)?;
        open.send(true)?;
        first.await?;
        second.await?;
        assert_eq!(
            store.read(vrot, Part::Permanent)?.as_deref(),
            Some(b"second".as_slice())
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_failed_commit_is_told_and_the_next_one_works() -> anyhow::Result<()> {
        let (open, store, journal) = gated().await?;
        let vrot = VrotId::random();
        let failing = journal.submit(change(vrot, b"lost")).await?;
        open.send(false)?;
        assert!(failing.await.is_err());
        assert_eq!(store.read(vrot, Part::Permanent)?, None);
        open.send(true)?;
        journal.commit(change(vrot, b"kept")).await?;
        assert_eq!(journal.metrics().failures(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn what_is_larger_than_any_state_is_refused_alone() -> anyhow::Result<()> {
        let (open, store, journal) = gated().await?;
        let (large, other) = (VrotId::random(), VrotId::random());
        let too_large = journal
            .submit(change(large, &vec![0; MAX_CONTENTS + 1]))
            .await?;
        let beside = journal
            .submit(change(other, &vec![0; MAX_CONTENTS]))
            .await?;
        open.send(true)?;
        open.send(true)?;
        let refused = too_large.await;
        assert!(
            matches!(refused, Err(StoreError::TooLarge { vrot, .. }) if vrot == large),
            "{refused:?}"
        );
        beside.await?;
        assert_eq!(store.read(large, Part::Record)?, None);
        Ok(())
    }

    #[test]
    fn the_last_handle_waits_for_what_is_queued() -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (open, store, journal) = runtime.block_on(gated())?;
        let vrot = VrotId::random();
        let _commit = runtime.block_on(journal.submit(change(vrot, b"x")))?;
        open.send(true)?;
        drop(journal);
        assert!(store.read(vrot, Part::Permanent)?.is_some());
        Ok(())
    }
}
