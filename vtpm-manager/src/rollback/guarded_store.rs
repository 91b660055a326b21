//! Store, journal, ledger and registers together.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cert_chain::{Digest32, Generation, VrotId};
use minicbor::Encoder;
use tempfile::TempDir;

use super::decision::Boot;
use super::fake_registers::{FailedWrite, FakeRegisters, Fuse};
use super::guard::{Guard, GuardError, Opening, stored};
use super::keys::RollbackKeys;
use super::ledger::SET_INTERVAL;
use super::policy::AnchorPolicy;
use super::register::{AnchorRegisters, CheckpointInterval, Contents, Reading, Register};
use crate::anchor::TrustAnchor;
use crate::anchor::swtpm::Swtpm;
use crate::registers::TpmRegisters;
use crate::store::{Batch, Cure, EmbeddedStore, Journal, MemoryStore, Part, Store, StoreError};
use crate::vrot::StoredVrot;

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
        guard(Box::new(self.registers.clone()), self.policy)
    }

    /// Starts a manager's store.
    async fn start(&self) -> Result<(Journal, Boot)> {
        start(Arc::new(self.store()?), self.guard()).await
    }

    /// The code of the refusal that a start ends with.
    fn refusal(&self) -> Result<&'static str> {
        let before = stored(&self.store()?)?;
        let found = match self.guard().open(&self.store()?)? {
            Opening::Refused(refused) => refused.refusal().code(),
            other => bail!("not refused: {other:?}"),
        };
        assert!(
            before == stored(&self.store()?)?,
            "a refusal changed the store"
        );
        Ok(found)
    }
}

fn guard(registers: Box<dyn AnchorRegisters + Send>, policy: AnchorPolicy) -> Guard {
    Guard {
        keys: RollbackKeys::derive(&[7; 32]),
        registers,
        policy,
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

/// A journal that takes changes, for tests of what is above it.
pub(crate) async fn journal() -> Result<Journal> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let registers = Box::new(FakeRegisters::blank());
    let ledger = guard(registers, AnchorPolicy::default()).initialise(store.as_ref())?;
    let journal = Journal::start_locked(store)?;
    journal.unlock(ledger).await?;
    Ok(journal)
}

/// A record as the manager writes it.
pub(crate) fn record(vrot: VrotId, generation: u64) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    (|| {
        e.array(2)?.u8(1)?.array(2)?.u8(0)?.array(1)?.map(9)?;
        e.u8(0)?
            .encode(vrot)?
            .u8(1)?
            .encode(vrot)?
            .u8(2)?
            .str("acme")?;
        e.u8(3)?.null()?.u8(4)?.u64(generation)?;
        e.u8(5)?.array(2)?.u8(1)?.array(1)?.u64(1)?;
        for key in [6, 7] {
            e.u8(key)?.array(2)?.bytes(&[key; 12])?.bytes(&[key])?;
        }
        e.u8(8)?.map(10)?;
        for key in 0..7 {
            e.u8(key)?.bytes(&[key])?;
        }
        e.u8(7)?.encode(Digest32::new([7; 32]))?;
        e.u8(8)?.encode(Digest32::new([8; 32]))?;
        e.u8(9)?.u64(1)?.ok()
    })()
    .unwrap_or_else(|error: minicbor::encode::Error<_>| panic!("{error}"));
    e.into_writer()
}

fn created(vrot: VrotId) -> Batch {
    Batch::default()
        .put_record(vrot, Generation::new(1), record(vrot, 1))
        .put(vrot, Part::Permanent, b"state 1".to_vec())
}

fn changed(vrot: VrotId, state: &[u8]) -> Batch {
    Batch::default().put(vrot, Part::Permanent, state.to_vec())
}

#[test]
fn the_record_of_these_tests_is_one() {
    let vrot = VrotId::random();
    let StoredVrot::Living(read) = StoredVrot::from_bytes(vrot, &record(vrot, 3)).unwrap() else {
        panic!("a tombstone");
    };
    assert_eq!(read.generation, Generation::new(3));
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
    let record = Batch::default().put_record(put_back, Generation::new(1), record(put_back, 1));
    host.store()?.commit(&record)?;
    assert_eq!(host.refusal()?, "returned-records");
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_writes_while_the_manager_runs_is_not_read() -> Result<()> {
    let store = Arc::new(MemoryStore::default());
    let registers = FakeRegisters::blank();
    let policy = AnchorPolicy::default();
    drop(guard(Box::new(registers.clone()), policy).initialise(store.as_ref())?);
    let guard = guard(Box::new(registers), policy);
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
    let handed_over = Batch::default().put_record(given, Generation::new(1), record(given, 1));
    journal.commit(handed_over.changing_ownership()).await?;
    let uncovered = |journal: &Journal| {
        journal
            .rollback_status()
            .map(|status| status.window.batches)
    };
    assert_ne!(uncovered(&journal), Some(0));
    let patience = Instant::now() + 3 * SET_INTERVAL;
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
    assert!(journal.trouble().is_none());
    let write = FailedWrite::Lost;
    host.registers.set_fuse(Some(Fuse { after: 0, write }));
    let waiting = journal.submit(changed(vrot, b"state 2")).await?;
    while journal.trouble().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The batch waits, and with it the writer; this does not.
    let trouble = journal.trouble().context("no trouble")?;
    assert_eq!(trouble.cure, Cure::WriterTries);
    assert!(trouble.reason.contains("rollback register"), "{trouble:?}");
    assert!(journal.rollback_status().is_some());

    // Others have handles still, as supervisors of running vRoTs do.
    let supervisor = journal.clone();
    journal.end_within(Duration::ZERO);
    assert!(matches!(waiting.await, Err(StoreError::Unanchored)));
    assert!(supervisor.is_overdue());
    Ok(())
}

#[tokio::test]
async fn checkpoints_come_by_themselves() -> Result<()> {
    let mut host = Host::new()?;
    host.policy = AnchorPolicy::Checkpoint(CheckpointInterval::from_secs(1).unwrap());
    let (journal, _) = host.start().await?;
    let vrot = VrotId::random();
    journal.commit(created(vrot)).await?;
    let before = host.registers.durable_writes();
    journal.commit(changed(vrot, b"state 2")).await?;
    journal.commit(changed(vrot, b"state 3")).await?;
    let status = journal.rollback_status().context("locked")?;
    assert_eq!(
        (status.window.batches, status.window.limit.as_secs()),
        (2, 1)
    );
    let patience = Instant::now() + Duration::from_secs(20);
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
            Batch::default().put_record(vrot, generation, record(vrot, generation.number()))
        })
    };
    let other = host.guard().recover(&store, "cleared-tpm", rewrite);
    let refused = other.err().context("accepted what was not found")?;
    assert!(
        refused.to_string().contains("--accept restored-store"),
        "{refused}"
    );
    let lazy = host.guard().recover(&store, "restored-store", |vrot, _| {
        Ok(Batch::default().put_record(vrot, Generation::new(1), record(vrot, 1)))
    });
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
    assert_eq!(kept, record(two, 3));
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
    let altered = record(vrot, u64::MAX - 1);
    let altered = Batch::default().put_record(vrot, Generation::new(u64::MAX - 1), altered);
    host.store()?.commit(&altered)?;
    assert_eq!(host.refusal()?, "stale-records");
    let rewrite = |vrot, generation: Generation| {
        Ok(Batch::default().put_record(vrot, generation, record(vrot, generation.number())))
    };
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

const GOLDEN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/rollback/testdata/store_v1"
);

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
    let durable = Contents::try_from(durable).ok().context("no register")?;
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
    assert_eq!(kept, Some(record(vrot, 1)));
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
    Ok(())
}

/// The whole way, with a software TPM in the physical one's role and redb on disk.
#[test]
fn a_real_tpm_tells_an_old_store_from_the_newest_over_a_reset() -> Result<()> {
    let tpm = Swtpm::blank()?;
    tpm.tool("tpm2_startup -c")?;
    let path = tpm.path("store");
    let guard = || -> Result<Guard> {
        let keys = RollbackKeys::derive(&[7; 32]);
        let registers = TpmRegisters::new(&TrustAnchor::start(&tpm.config())?, &keys);
        Ok(guard(Box::new(registers), AnchorPolicy::default()))
    };
    let open = |path: &Path| -> Result<Opening> { Ok(guard()?.open(&EmbeddedStore::open(path)?)?) };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let write = |batch: Batch| -> Result<()> {
        runtime.block_on(async {
            let (journal, _) = start(Arc::new(EmbeddedStore::open(&path)?), guard()?).await?;
            Ok(journal.commit(batch).await?)
        })
    };
    assert!(matches!(open(&path)?, Opening::Blank));
    drop(guard()?.initialise(&EmbeddedStore::open(&path)?)?);
    let vrot = VrotId::random();
    write(created(vrot))?;
    let old = fs::read(&path)?;
    write(changed(vrot, b"state 2"))?;
    let newest = fs::read(&path)?;

    let code = |opening: Opening| match opening {
        Opening::Refused(refused) => refused.refusal().code(),
        _ => "opened",
    };
    fs::write(&path, &old)?;
    assert_eq!(code(open(&path)?), "restored-store");
    tpm.switch_off()?;
    tpm.switch_on()?;
    assert_eq!(code(open(&path)?), "restored-store");
    fs::write(&path, &newest)?;
    let boot = match open(&path)? {
        Opening::Opened { boot, .. } => boot,
        other => bail!("{other:?}"),
    };
    assert_eq!(boot, Boot::AfterShutdown);
    write(changed(vrot, b"state 3"))?;

    tpm.tool("tpm2_clear -c p")?;
    assert_eq!(code(open(&path)?), "cleared-tpm");
    Ok(())
}
