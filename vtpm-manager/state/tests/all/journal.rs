//! Group commit: what shares a batch, and what is told when.

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};

use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Batch, MAX_CONTENTS, Part, Store, StoreError, StoredLedger};
use guarded_state::journal::Journal;
use guarded_state::testing::{FakeRegisters, MemoryStore, guard};

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

    fn ledger(&self) -> Result<StoredLedger, StoreError> {
        self.memory.ledger()
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
    let ledger = guard(&FakeRegisters::blank()).initialise(&memory)?;
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
