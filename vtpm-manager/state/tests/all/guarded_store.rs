//! Store, journal, ledger and registers together.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cert_chain::{Generation, VrotId};
use tempfile::TempDir;

use guarded_state::disk::{Batch, EmbeddedStore, Part, Store, StoreError, StoredLedger};
use guarded_state::journal::{Guard, GuardError, Journal, Opening, RetriedBy};
use guarded_state::ledger::running::SET_INTERVAL;
use guarded_state::ledger::{AnchorPolicy, Boot, CheckpointInterval, Reading, Register, register};
use guarded_state::testing::{self, FailedWrite, FakeRegisters, Fuse, MemoryStore};

/// A host with a store on disk.
struct Host {
    folder: TempDir,
    registers: FakeRegisters,
    policy: AnchorPolicy,
}

impl Host {
    fn new() -> Result<Self> {
        let host = Self {
            folder: tempfile::tempdir()?,
            registers: FakeRegisters::blank(),
            policy: AnchorPolicy::default(),
        };
        let store = host.store()?;
        assert!(matches!(host.guard().open(&store)?, Opening::Blank));
        drop(host.guard().initialise(&store)?);
        Ok(host)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn store(&self) -> Result<EmbeddedStore> {
        Ok(EmbeddedStore::open(&self.path())?)
    }

    fn guard(&self) -> Guard {
        Guard {
            policy: self.policy,
            ..testing::guard(&self.registers)
        }
    }

    /// Starts a manager's store.
    async fn start(&self) -> Result<(Journal, Boot)> {
        start(Arc::new(self.store()?), self.guard()).await
    }

    /// The code of the refusal that a start ends with.
    fn refusal(&self) -> Result<&'static str> {
        let before = contents(&self.store()?)?;
        let found = match self.guard().open(&self.store()?)? {
            Opening::Refused(refused) => refused.refusal().code(),
            other => bail!("not refused: {other:?}"),
        };
        assert!(
            before == contents(&self.store()?)?,
            "a refusal changed the store"
        );
        Ok(found)
    }
}

async fn start(store: Arc<dyn Store>, guard: Guard) -> Result<(Journal, Boot)> {
    let journal = Journal::start_locked(Arc::clone(&store))?;
    match guard.open(store.as_ref())? {
        Opening::Opened { ledger, boot, .. } => {
            journal.unlock(*ledger).await?;
            Ok((journal, boot))
        }
        other => bail!("not opened: {other:?}"),
    }
}

type Contents = (StoredLedger, BTreeMap<(VrotId, Part), Vec<u8>>);

/// Everything that a store holds.
fn contents(store: &dyn Store) -> Result<Contents> {
    let mut parts = BTreeMap::new();
    for vrot in store.vrots()? {
        for part in Part::ALL {
            parts.extend(store.read(vrot, part)?.map(|bytes| ((vrot, part), bytes)));
        }
    }
    Ok((store.ledger()?, parts))
}

/// A record. Nothing but its generation matters here.
fn record(vrot: VrotId, generation: Generation) -> Batch {
    Batch::default().put_record(vrot, generation, record_bytes(vrot, generation))
}

fn record_bytes(vrot: VrotId, generation: Generation) -> Vec<u8> {
    format!("record of {vrot}, generation {generation}").into_bytes()
}

const FIRST: Generation = Generation::new(1);

fn created(vrot: VrotId) -> Batch {
    record(vrot, FIRST).put(vrot, Part::Permanent, b"state 1".to_vec())
}

fn changed(vrot: VrotId, state: &[u8]) -> Batch {
    Batch::default().put(vrot, Part::Permanent, state.to_vec())
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_every_kind_of_end() -> Result<()> {
    let host = Host::new()?;
    let vrot = VrotId::random();
    let (journal, boot) = host.start().await?;
    assert_eq!(boot, Boot::Continued);
    journal.commit(created(vrot)).await?;
    drop(journal);

    let (journal, boot) = host.start().await?;
    assert_eq!(boot, Boot::Continued);
    journal.commit(changed(vrot, b"state 2")).await?;
    // Dropping the journal is a shutdown; then the machine restarts.
    drop(journal);
    host.registers.reset();

    let (journal, boot) = host.start().await?;
    assert_eq!(boot, Boot::AfterShutdown);
    let state = journal.read(vrot, Part::Permanent).await?;
    assert_eq!(state.as_deref(), Some(b"state 2".as_slice()));
    Ok(())
}

#[tokio::test]
async fn a_locked_store_takes_nothing_and_tells_nothing() -> Result<()> {
    let host = Host::new()?;
    let journal = Journal::start_locked(Arc::new(host.store()?))?;
    let vrot = VrotId::random();
    let refused = journal.commit(created(vrot)).await;
    assert!(matches!(refused, Err(StoreError::Locked)));
    let refused = journal.read(vrot, Part::Record).await;
    assert!(matches!(refused, Err(StoreError::Locked)));
    assert_eq!(journal.rollback_status(), None);
    Ok(())
}

#[tokio::test]
async fn a_backup_that_was_put_back_is_refused() -> Result<()> {
    let host = Host::new()?;
    let vrot = VrotId::random();
    let (journal, _) = host.start().await?;
    journal.commit(created(vrot)).await?;
    drop(journal);
    let backup = fs::read(host.path())?;

    let (journal, _) = host.start().await?;
    journal.commit(changed(vrot, b"state 2")).await?;
    drop(journal);
    let newest = fs::read(host.path())?;
    fs::write(host.path(), &backup)?;
    assert_eq!(host.refusal()?, "restored-store");
    host.registers.reset();
    assert_eq!(host.refusal()?, "restored-store");

    fs::write(host.path(), newest)?;
    assert!(host.start().await.is_ok());
    Ok(())
}

#[tokio::test]
async fn one_old_record_in_the_newest_store_is_refused() -> Result<()> {
    let host = Host::new()?;
    let (one, two) = (VrotId::random(), VrotId::random());
    let (journal, _) = host.start().await?;
    journal.commit(created(one)).await?;
    journal.commit(created(two)).await?;
    journal.commit(changed(one, b"old")).await?;
    journal.commit(changed(one, b"state 2")).await?;
    drop(journal);
    // Somebody writes into the file past the manager.
    host.store()?.commit(&changed(one, b"old"))?;
    assert_eq!(host.refusal()?, "stale-records");
    host.store()?.commit(&changed(one, b"state 2"))?;
    let put_back = VrotId::random();
    host.store()?.commit(&record(put_back, FIRST))?;
    assert_eq!(host.refusal()?, "returned-records");
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_writes_while_the_manager_runs_is_not_read() -> Result<()> {
    let store = Arc::new(MemoryStore::default());
    let registers = FakeRegisters::blank();
    drop(testing::guard(&registers).initialise(store.as_ref())?);
    let guard = testing::guard(&registers);
    let (journal, _) = start(Arc::clone(&store) as Arc<dyn Store>, guard).await?;
    let vrot = VrotId::random();
    journal.commit(created(vrot)).await?;
    journal.commit(changed(vrot, b"state 2")).await?;
    store.commit(&changed(vrot, b"state 1"))?;
    let refused = journal.read(vrot, Part::Permanent).await;
    assert!(
        matches!(refused, Err(StoreError::Altered(_))),
        "{refused:?}"
    );
    store.commit(&Batch::default().remove(vrot, Part::Permanent))?;
    assert!(journal.read(vrot, Part::Permanent).await.is_err());
    Ok(())
}

#[tokio::test]
async fn late_state_of_a_deleted_vrot_fails_alone() -> Result<()> {
    let host = Host::new()?;
    let (gone, other) = (VrotId::random(), VrotId::random());
    let (journal, _) = host.start().await?;
    journal.commit(created(gone)).await?;
    let deleted = journal.submit(Batch::default().delete(gone)).await?;
    let late = journal.submit(changed(gone, b"late")).await?;
    let beside = journal.submit(created(other)).await?;
    deleted.await?;
    assert!(matches!(late.await, Err(StoreError::UnknownVrot { vrot }) if vrot == gone));
    beside.await?;
    // Deleting once more, as after a crash in between, is no error.
    journal.commit(Batch::default().delete(gone)).await?;
    drop(journal);
    assert!(host.start().await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_loss_of_power_does_not_bring_a_deleted_vrot_back_nor_takes_one_from_its_vm() -> Result<()>
{
    let mut host = Host::new()?;
    let vrots = [(); 3].map(|()| VrotId::random());
    let [buried, removed, given] = vrots;
    let (journal, _) = host.start().await?;
    for vrot in &vrots {
        journal.commit(created(*vrot)).await?;
    }
    drop(journal);
    let tombstone = |vrot| {
        let tombstone = b"what its line in the audit log needs".to_vec();
        Batch::default().put_record(vrot, Generation::default(), tombstone)
    };
    for deletion in [tombstone(buried), Batch::default().delete(removed)] {
        let before = fs::read(host.path())?;
        let (journal, _) = host.start().await?;
        journal.commit(deletion).await?;
        // The manager is killed: it makes no checkpoint any more.
        let registers = host.registers.fork();
        let newest = fs::read(host.path())?;
        drop(journal);
        host.registers = registers;
        host.registers.reset();
        fs::write(host.path(), before)?;
        assert_eq!(host.refusal()?, "restored-store");
        fs::write(host.path(), newest)?;
        drop(host.start().await?);
    }
    let (journal, _) = host.start().await?;
    let handed_over = record(given, FIRST).changing_ownership();
    journal.commit(handed_over).await?;
    let uncovered = |journal: &Journal| {
        journal
            .rollback_status()
            .map(|status| status.window.batches)
    };
    assert_ne!(uncovered(&journal), Some(0));
    let patience = Instant::now() + 6 * SET_INTERVAL;
    while uncovered(&journal) != Some(0) {
        assert!(Instant::now() < patience, "no checkpoint");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_is_told_only_when_the_tpm_has_it() -> Result<()> {
    for write in [FailedWrite::Lost, FailedWrite::Happened] {
        let host = Host::new()?;
        let vrot = VrotId::random();
        let (journal, _) = host.start().await?;
        journal.commit(created(vrot)).await?;
        host.registers.set_fuse(Some(Fuse { after: 0, write }));
        let waiting = journal.submit(changed(vrot, b"state 2")).await?;
        let waiting = tokio::time::timeout(Duration::from_millis(300), waiting).await;
        assert!(waiting.is_err(), "told before the TPM had it");
        host.registers.set_fuse(None);
        journal.commit(changed(vrot, b"state 3")).await?;
        drop(journal);
        host.registers.reset();
        let (journal, _) = host.start().await?;
        let state = journal.read(vrot, Part::Permanent).await?;
        assert_eq!(state.as_deref(), Some(b"state 3".as_slice()));
    }
    Ok(())
}

#[tokio::test]
async fn who_looks_and_who_ends_the_manager_do_not_wait_for_a_tpm_that_is_gone() -> Result<()> {
    let host = Host::new()?;
    let vrot = VrotId::random();
    let (journal, _) = host.start().await?;
    journal.commit(created(vrot)).await?;
    assert!(journal.stall().is_none());
    let write = FailedWrite::Lost;
    host.registers.set_fuse(Some(Fuse { after: 0, write }));
    let waiting = journal.submit(changed(vrot, b"state 2")).await?;
    while journal.stall().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The batch waits, and with it the writer; this does not.
    let stall = journal.stall().context("no stall")?;
    assert_eq!(stall.retried_by, RetriedBy::Writer);
    assert!(stall.error.to_string().contains("rollback register"));
    assert!(journal.rollback_status().is_some());

    // Others have handles still, as supervisors of running vRoTs do.
    let supervisor = journal.clone();
    journal.end_within(Duration::ZERO);
    assert!(matches!(waiting.await, Err(StoreError::Closed)));
    let again = supervisor.commit(changed(vrot, b"state 2")).await;
    assert!(matches!(again, Err(StoreError::Closed)), "{again:?}");
    Ok(())
}

#[tokio::test]
async fn checkpoints_come_by_themselves() -> Result<()> {
    let mut host = Host::new()?;
    // Longer than two commits take, on whatever disk.
    host.policy = AnchorPolicy::Checkpoint(CheckpointInterval::from_secs(5).unwrap());
    let (journal, _) = host.start().await?;
    let vrot = VrotId::random();
    journal.commit(created(vrot)).await?;
    let before = host.registers.durable_writes();
    journal.commit(changed(vrot, b"state 2")).await?;
    journal.commit(changed(vrot, b"state 3")).await?;
    let status = journal.rollback_status().context("locked")?;
    assert_eq!(
        (status.window.batches, status.window.limit.as_secs()),
        (2, 5)
    );
    let patience = Instant::now() + Duration::from_secs(60);
    while host.registers.durable_writes() == before {
        assert!(Instant::now() < patience, "no checkpoint");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = journal.rollback_status().context("locked")?;
    assert_eq!(status.window.batches, 0);
    assert_eq!(host.registers.durable_writes(), before + 1);
    Ok(())
}

#[tokio::test]
async fn a_thousand_busy_vrots_share_batches_and_registers() -> Result<()> {
    let host = Host::new()?;
    let (journal, _) = host.start().await?;
    let vrots: Vec<VrotId> = (0..1000).map(|_| VrotId::random()).collect();
    let mut commits = Vec::new();
    for vrot in &vrots {
        commits.push(journal.submit(created(*vrot)).await?);
    }
    for commit in commits {
        commit.await?;
    }
    let before = host.registers.volatile_writes();
    let mut commits = Vec::new();
    for vrot in &vrots {
        commits.push(journal.submit(changed(*vrot, b"state 2")).await?);
    }
    for commit in commits {
        commit.await?;
    }
    let writes = host.registers.volatile_writes() - before;
    assert!(writes <= 100, "{writes} writes of the volatile register");
    drop(journal);
    assert!(host.start().await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_recovery_rewrites_what_it_accepts() -> Result<()> {
    let host = Host::new()?;
    let (one, two, broken) = (VrotId::random(), VrotId::random(), VrotId::random());
    let (journal, _) = host.start().await?;
    for vrot in [one, two, broken] {
        journal.commit(created(vrot)).await?;
    }
    drop(journal);
    let backup = fs::read(host.path())?;
    let (journal, _) = host.start().await?;
    journal.commit(changed(one, b"state 2")).await?;
    drop(journal);
    fs::write(host.path(), backup)?;

    let store = host.store()?;
    let rewrite = |vrot, generation: Generation| {
        Ok(if vrot == broken {
            Batch::default().delete(vrot)
        } else {
            record(vrot, generation)
        })
    };
    let other = host.guard().recover(&store, "cleared-tpm", rewrite);
    let refused = other.err().context("accepted what was not found")?;
    assert!(
        refused.to_string().contains("--accept restored-store"),
        "{refused}"
    );
    let lazy = host
        .guard()
        .recover(&store, "restored-store", |vrot, _| Ok(record(vrot, FIRST)));
    assert!(matches!(lazy, Err(GuardError::NotRaised { .. })));

    let (ledger, done) = host.guard().recover(&store, "restored-store", rewrite)?;
    // The one that was not carried out has used up a number.
    assert_eq!(done.generation, Generation::new(3));
    assert_eq!((done.raised.len(), done.lost), (2, vec![broken]));
    drop((ledger, store));
    // A manager that was killed before it wrote of it finds it in the chain.
    for reset in [false, true] {
        if reset {
            host.registers.reset();
        }
        let Opening::Opened { recovered, .. } = host.guard().open(&host.store()?)? else {
            bail!("not opened");
        };
        let recovered = recovered.context("the recovery is forgotten")?;
        assert_eq!(recovered.generation, done.generation);
        assert_eq!(recovered.batch.number(), done.batch);
    }
    let (journal, _) = host.start().await?;
    let kept = journal
        .read(two, Part::Record)
        .await?
        .context("no record")?;
    assert_eq!(kept, record_bytes(two, Generation::new(3)));
    assert_eq!(journal.read(broken, Part::Permanent).await?, None);
    drop(journal);
    let again = host
        .guard()
        .recover(&host.store()?, "restored-store", rewrite);
    assert!(matches!(again, Err(GuardError::NotRefused)));
    Ok(())
}

/// A new generation is a step of a counter in the TPM's flash: what somebody wrote into a record
/// must not make it count.
#[tokio::test]
async fn a_recovery_does_not_count_on_from_what_an_altered_record_states() -> Result<()> {
    let host = Host::new()?;
    let vrot = VrotId::random();
    let (journal, _) = host.start().await?;
    journal.commit(created(vrot)).await?;
    drop(journal);
    let altered = record(vrot, Generation::new(u64::MAX - 1));
    host.store()?.commit(&altered)?;
    assert_eq!(host.refusal()?, "stale-records");
    let rewrite = |vrot, generation| Ok(record(vrot, generation));
    let store = host.store()?;
    let (_, done) = host.guard().recover(&store, "stale-records", rewrite)?;
    assert_eq!(done.generation, Generation::new(2));
    Ok(())
}

#[test]
fn only_a_blank_host_is_set_up() -> Result<()> {
    let host = Host::new()?;
    let again = host.guard().initialise(&host.store()?);
    assert!(matches!(again, Err(GuardError::NotBlank)));
    Ok(())
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/store_v1");

/// One vRoT of which three states were stored, at a shutdown.
const GOLDEN_VROT: &str = "01010101-0101-4101-8101-010101010101";

/// A host with the store and the durable register that a manager left when this format was new.
fn golden_host() -> Result<Host> {
    let host = Host {
        folder: tempfile::tempdir()?,
        registers: FakeRegisters::blank(),
        policy: AnchorPolicy::default(),
    };
    fs::copy(format!("{GOLDEN}.redb"), host.path())?;
    let durable = hex::decode(fs::read_to_string(format!("{GOLDEN}.durable.hex"))?.trim())?;
    let durable = register::Contents::try_from(durable)
        .ok()
        .context("no register")?;
    host.registers
        .set(Register::Durable, Reading::Written(durable));
    host.registers.set(Register::Volatile, Reading::Unwritten);
    Ok(host)
}

#[tokio::test]
async fn a_store_that_an_earlier_program_wrote_opens_and_goes_on() -> Result<()> {
    let host = golden_host()?;
    let vrot: VrotId = GOLDEN_VROT.parse()?;
    let (journal, boot) = host.start().await?;
    assert_eq!(boot, Boot::AfterShutdown);
    let kept = journal.read(vrot, Part::Record).await?;
    let golden = fs::read_to_string(format!("{GOLDEN}.record.hex"))?;
    assert_eq!(kept, Some(hex::decode(golden.trim())?));
    let state = journal.read(vrot, Part::Permanent).await?;
    assert_eq!(state.as_deref(), Some(b"state 3".as_slice()));
    journal.commit(changed(vrot, b"state 4")).await?;
    drop(journal);
    assert!(host.start().await.is_ok());
    Ok(())
}

/// For a new version of the format: give the files a new number, and keep the old ones.
#[tokio::test]
#[ignore = "writes the files that stores in the field stand for"]
async fn the_golden_store_is_made() -> Result<()> {
    let host = Host::new()?;
    let vrot: VrotId = GOLDEN_VROT.parse()?;
    let (journal, _) = host.start().await?;
    journal.commit(created(vrot)).await?;
    journal.commit(changed(vrot, b"state 2")).await?;
    journal.commit(changed(vrot, b"state 3")).await?;
    drop(journal);
    let Reading::Written(durable) = host.registers.peek(Register::Durable) else {
        bail!("no checkpoint");
    };
    fs::copy(host.path(), format!("{GOLDEN}.redb"))?;
    fs::write(format!("{GOLDEN}.durable.hex"), hex::encode(durable))?;
    let record = record_bytes(vrot, FIRST);
    fs::write(format!("{GOLDEN}.record.hex"), hex::encode(record))?;
    Ok(())
}
