//! Batches that name the newest line of a log beside the store.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use cert_chain::{Digest32, Generation, VrotId};
use guarded_state::disk::{Batch, Store};
use guarded_state::journal::{Journal, Opening};
use guarded_state::ledger::{HostLedger, LogMark, LogPosition, MarkedLog};
use guarded_state::testing::{FakeRegisters, MemoryStore, guard};

#[derive(Debug, Default)]
struct Log(Mutex<Option<LogMark>>);

impl Log {
    fn write(&self, lines: u64) -> LogMark {
        let mark = LogMark {
            newest: LogPosition {
                lines,
                head: Digest32::of(&lines.to_be_bytes()),
            },
            missing: None,
            later: None,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
        mark
    }
}

impl MarkedLog for Log {
    fn mark(&self) -> Option<LogMark> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn opened(registers: &FakeRegisters, store: &dyn Store) -> Result<HostLedger> {
    match guard(registers).open(store)? {
        Opening::Opened { ledger, .. } => Ok(*ledger),
        other => bail!("not opened: {other:?}"),
    }
}

async fn journal(store: &Arc<MemoryStore>, ledger: HostLedger, log: &Arc<Log>) -> Result<Journal> {
    let journal = Journal::start_locked(Arc::clone(store) as Arc<dyn Store>)?;
    journal.mark(Arc::clone(log) as Arc<dyn MarkedLog>);
    journal.unlock(ledger).await?;
    Ok(journal)
}

fn creation() -> Batch {
    Batch::default().put_record(VrotId::random(), Generation::new(1), b"record".to_vec())
}

#[tokio::test]
async fn each_batch_names_the_newest_line_and_the_last_one_is_made_for_it() -> Result<()> {
    let registers = FakeRegisters::blank();
    let store = Arc::new(MemoryStore::default());
    let log = Arc::new(Log::default());
    let ledger = guard(&registers).initialise(store.as_ref())?;
    assert_eq!(ledger.head().log(), None);
    let marked = |journal: &Journal| journal.rollback_status().and_then(|status| status.log);
    let begun = journal(&store, ledger, &log).await?;

    // Not held against the store yet.
    begun.commit(creation()).await?;
    assert_eq!(marked(&begun), None);
    let first = log.write(3);
    begun.commit(creation()).await?;
    assert_eq!(marked(&begun), Some(first));
    // Nothing is committed for nothing, and a batch for the log alone is one.
    let commits = store.commits();
    begun.commit(Batch::default()).await?;
    assert_eq!(store.commits(), commits);
    let second = log.write(4);
    begun.commit(Batch::default().marking_log()).await?;
    assert_eq!(
        (marked(&begun), store.commits()),
        (Some(second), commits + 1)
    );
    let last = log.write(6);
    drop(begun);
    assert_eq!(store.commits(), commits + 2);
    let ledger = opened(&registers, store.as_ref())?;
    assert_eq!(ledger.head().log(), Some(last));

    // After a reset of the TPM, a batch is made before anybody has looked at the log.
    drop(journal(&store, ledger, &Arc::new(Log::default())).await?);
    let batch = |ledger: &HostLedger| ledger.head().epoch();
    let before = batch(&opened(&registers, store.as_ref())?);
    registers.reset();
    let ledger = opened(&registers, store.as_ref())?;
    assert!(batch(&ledger) > before);
    assert_eq!(ledger.head().log(), Some(last));
    Ok(())
}

#[tokio::test]
async fn a_recovery_repeats_what_the_store_says_of_the_log() -> Result<()> {
    let registers = FakeRegisters::blank();
    let store = Arc::new(MemoryStore::default());
    let log = Arc::new(Log::default());
    let mark = log.write(7);
    let ledger = guard(&registers).initialise(store.as_ref())?;
    drop(journal(&store, ledger, &log).await?);
    // Another TPM's counter is behind: its register does not know this store.
    let forked = registers.fork();
    let ahead = opened(&registers, store.as_ref())?;
    drop(journal(&store, ahead, &Arc::new(Log::default())).await?);
    let journal = journal(&store, opened(&registers, store.as_ref())?, &log).await?;
    for _ in 0..3 {
        journal.commit(creation()).await?;
    }
    drop(journal);
    let Opening::Refused(refused) = guard(&forked).open(store.as_ref())? else {
        bail!("not refused");
    };
    let code = refused.refusal().code();
    let (recovered, _) = (guard(&forked).recover(store.as_ref(), code, |vrot, generation| {
        Ok(Batch::default().put_record(vrot, generation, b"raised".to_vec()))
    }))
    .context("not recovered")?;
    assert_eq!(recovered.head().log(), Some(mark));
    Ok(())
}
