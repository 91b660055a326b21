//! What the store promises on disks that fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cert_chain::{Generation, VrotId};
use guarded_state::disk::{Batch, EmbeddedStore, Part, Store, StoreError};
use guarded_state::journal::{Guard, Journal, Opening};
use guarded_state::ledger::{AnchorPolicy, CheckpointInterval};
use guarded_state::testing::{self, FakeRegisters};
use redb::{Builder, Database, TableDefinition};
use uuid::Uuid;

use crate::simulated_disk::{Fault, SimulatedDisk};

/// A host whose disk and TPM survive its managers.
struct Host {
    disk: SimulatedDisk,
    registers: FakeRegisters,
    policy: AnchorPolicy,
}

/// The default, and the one that writes the durable register with each batch.
const POLICIES: [AnchorPolicy; 2] = [
    AnchorPolicy::Checkpoint(CheckpointInterval::DEFAULT),
    AnchorPolicy::Strict,
];

impl Host {
    fn set_up() -> Result<Self> {
        Self::set_up_with(AnchorPolicy::default())
    }

    fn set_up_with(policy: AnchorPolicy) -> Result<Self> {
        let host = Self {
            disk: SimulatedDisk::default(),
            registers: FakeRegisters::blank(),
            policy,
        };
        drop(host.guard().initialise(&host.store()?)?);
        Ok(host)
    }

    fn store(&self) -> Result<EmbeddedStore, StoreError> {
        EmbeddedStore::on(self.disk.clone())
    }

    fn guard(&self) -> Guard {
        Guard {
            policy: self.policy,
            ..testing::guard(&self.registers)
        }
    }

    /// Starts a manager's store, if the rollback evidence lets it.
    async fn start(&self) -> Result<(Journal, Arc<EmbeddedStore>)> {
        let store = Arc::new(self.store()?);
        let journal = Journal::start_locked(Arc::clone(&store) as Arc<dyn Store>)?;
        match self.guard().open(store.as_ref())? {
            Opening::Opened { ledger, .. } => journal.unlock(*ledger).await?,
            other => bail!("not opened: {other:?}"),
        }
        Ok((journal, store))
    }

    /// The same host at the same moment, but for what its disk holds.
    fn with_disk(&self, image: Vec<u8>) -> Self {
        Self {
            disk: SimulatedDisk::holding(image),
            registers: self.registers.fork(),
            policy: self.policy,
        }
    }
}

fn record(vrot: VrotId) -> Batch {
    Batch::default().put_record(vrot, Generation::new(1), b"a record".to_vec())
}

fn state(vrot: VrotId, number: u8) -> Batch {
    Batch::default().put(vrot, Part::Permanent, vec![number; 3000])
}

/// A host with a vRoT whose state has the number 1.
async fn with_a_vrot() -> Result<(Host, Journal, VrotId)> {
    let host = Host::set_up()?;
    let (journal, _) = host.start().await?;
    let vrot = VrotId::random();
    let made = record(vrot).followed_by(state(vrot, 1));
    journal.commit(made).await?;
    Ok((host, journal, vrot))
}

/// The number of its state, if that is as it was written.
async fn number_of(journal: &Journal, vrot: VrotId) -> Result<Option<u8>> {
    let found = journal.read(vrot, Part::Permanent).await?;
    let number = found.as_ref().and_then(|state| state.first().copied());
    ensure!(found == number.map(|number| vec![number; 3000]));
    Ok(number)
}

/// What a host's VMs did, as far as they were told that it is durable.
#[derive(Default)]
struct Told {
    /// The last number of each that was acknowledged, and the last that was tried.
    numbers: BTreeMap<VrotId, (Option<u8>, u8)>,
}

impl Told {
    /// Some VMs change their state until the disk ends, or the work does.
    async fn work(&mut self, journal: &Journal, vrots: &[VrotId]) -> Result<(), StoreError> {
        for vrot in vrots {
            journal.commit(record(*vrot)).await?;
        }
        for number in 1..4 {
            for vrot in vrots {
                let told = self.numbers.entry(*vrot).or_default();
                told.1 = number;
                journal.commit(state(*vrot, number)).await?;
                told.0 = Some(number);
            }
        }
        Ok(())
    }

    async fn check(&self, journal: &Journal) -> Result<()> {
        for (vrot, (acknowledged, tried)) in &self.numbers {
            let found = journal.read(*vrot, Part::Permanent).await?;
            let found = found.and_then(|state| state.first().copied());
            ensure!(
                found >= *acknowledged && found <= Some(*tried),
                "{vrot} was told {acknowledged:?}, tried {tried}; the disk has {found:?}"
            );
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged() -> Result<()> {
    for policy in POLICIES {
        let vrots = [VrotId::random(), VrotId::random()];
        let host = Host::set_up_with(policy)?;
        let before = host.disk.operations();
        let (journal, _) = host.start().await?;
        Told::default().work(&journal, &vrots).await?;
        drop(journal);
        let operations = before..host.disk.operations();
        ensure!(operations.clone().count() > 50, "{operations:?}");

        for operation in operations {
            for seed in 0..3 {
                let host = Host::set_up_with(policy)?;
                host.disk.lose_power_at(operation);
                let mut told = Told::default();
                if let Ok((journal, _)) = host.start().await {
                    let _ = told.work(&journal, &vrots).await;
                }
                host.disk.restart(seed);
                host.registers.reset();
                let cut = format!("{policy:?}, power cut at operation {operation}, seed {seed}");
                let (journal, _) = host.start().await.context(cut.clone())?;
                told.check(&journal).await.context(cut)?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_store_goes_on_when_there_is_room() -> Result<()> {
    let (host, journal, vrot) = with_a_vrot().await?;
    host.disk.set_fault(Fault::Full);
    let failed = loop {
        // What is free in the file is used first.
        let other = VrotId::random();
        let large = record(other).put(other, Part::Saved, vec![0; 100_000]);
        if let Err(error) = journal.commit(large).await {
            break error;
        }
    };
    assert!(matches!(failed, StoreError::Full(_)), "{failed:?}");
    assert!(failed.to_string().contains("disk of the store is full"));

    host.disk.set_fault(Fault::None);
    assert_eq!(number_of(&journal, vrot).await?, Some(1));
    journal.commit(state(vrot, 2)).await?;
    drop(journal);
    let (journal, _) = host.start().await?;
    assert_eq!(number_of(&journal, vrot).await?, Some(2));
    Ok(())
}

#[tokio::test]
async fn a_disk_that_turned_read_only_is_named_and_the_store_goes_on_when_it_is_back() -> Result<()>
{
    let host = Host::set_up()?;
    let (journal, _) = host.start().await?;
    let vrot = VrotId::random();
    journal.commit(record(vrot)).await?;
    host.disk.set_fault(Fault::ReadOnly);
    let failed = journal.commit(state(vrot, 1)).await.err();
    assert!(
        matches!(failed, Some(StoreError::ReadOnly(_))),
        "{failed:?}"
    );
    host.disk.set_fault(Fault::None);
    journal.commit(state(vrot, 2)).await?;
    drop(journal);
    let (journal, _) = host.start().await?;
    assert_eq!(number_of(&journal, vrot).await?, Some(2));
    Ok(())
}

#[tokio::test]
async fn on_a_slow_disk_more_changes_share_a_write() -> Result<()> {
    const CHANGES: u64 = 200;
    let host = Host::set_up()?;
    let (journal, _) = host.start().await?;
    host.disk.set_fault(Fault::Slow(Duration::from_millis(20)));
    let before = host.disk.syncs();
    let mut commits = Vec::new();
    for _ in 0..CHANGES {
        commits.push(journal.submit(record(VrotId::random())).await?);
    }
    for commit in commits {
        commit.await?;
    }
    let syncs = host.disk.syncs() - before;
    assert!(syncs * 10 <= CHANGES, "{syncs} syncs");
    Ok(())
}

#[tokio::test]
async fn a_write_that_was_not_confirmed_is_written_anew_before_anybody_is_told() -> Result<()> {
    for seed in 0..8 {
        let (host, journal, vrot) = with_a_vrot().await?;
        host.disk.set_fault(Fault::Unconfirmed);
        journal.commit(state(vrot, 2)).await?;
        host.disk.restart(seed);
        host.registers.reset();
        drop(journal);
        let (journal, _) = host.start().await?;
        assert_eq!(number_of(&journal, vrot).await?, Some(2), "seed {seed}");
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_that_confirms_nothing_closes_the_store_until_a_restart() -> Result<()> {
    let (host, journal, vrot) = with_a_vrot().await?;
    host.disk.set_fault(Fault::NeverConfirms);
    assert!(journal.commit(state(vrot, 2)).await.is_err());
    let refused = journal.commit(state(vrot, 3)).await;
    assert!(
        matches!(refused, Err(StoreError::Unconfirmed)),
        "{refused:?}"
    );
    assert!(journal.read(vrot, Part::Permanent).await.is_err());
    // The disk is well again; but what was called failed is there.
    host.disk.set_fault(Fault::None);
    let refused = journal.commit(state(vrot, 3)).await;
    assert!(matches!(refused, Err(StoreError::Overtaken)), "{refused:?}");
    drop(journal);
    let (journal, _) = host.start().await?;
    journal.commit(state(vrot, 4)).await?;
    Ok(())
}

/// The next manager reads what the kernel shows, and accepts a batch that is not on the disk.
#[tokio::test]
async fn what_a_manager_goes_on_from_after_an_unconfirmed_write_survives_a_power_cut() -> Result<()>
{
    for policy in POLICIES {
        for seed in 0..8 {
            let host = Host::set_up_with(policy)?;
            let (journal, _) = host.start().await?;
            let vrot = VrotId::random();
            let other = VrotId::random();
            journal.commit(record(vrot)).await?;
            journal.commit(record(other)).await?;
            host.disk.set_fault(Fault::NeverConfirms);
            assert!(journal.commit(state(vrot, 1)).await.is_err());
            drop(journal);
            host.disk.set_fault(Fault::None);

            let (journal, _) = host.start().await?;
            let found = journal.read(vrot, Part::Permanent).await?;
            assert!(found.is_some(), "not what this test is about");
            journal.commit(state(other, 2)).await?;
            host.disk.restart(seed);
            host.registers.reset();
            drop(journal);
            let cut = format!("{policy:?}, seed {seed}");
            let (journal, _) = host.start().await.context(cut.clone())?;
            for (vrot, number) in [(vrot, 1), (other, 2)] {
                assert_eq!(number_of(&journal, vrot).await?, Some(number), "{cut}");
            }
        }
    }
    Ok(())
}

/// Somebody has the disk, or the disk decays. Where the evidence lets the store open, what was
/// committed is there.
#[tokio::test]
async fn a_changed_byte_is_refused_or_without_effect() -> Result<()> {
    let (host, journal, vrot) = with_a_vrot().await?;
    journal.commit(state(vrot, 2)).await?;
    drop(journal);
    let image = host.disk.image();
    // Pages that are all zero are not in use.
    let used: Vec<usize> = (0..image.len())
        .filter(|at| image.get(*at).is_some_and(|byte| *byte != 0))
        .collect();
    let (mut refused, mut opened) = (0, 0);
    for at in used.iter().step_by(used.len().div_ceil(400)) {
        let mut image = image.clone();
        if let Some(byte) = image.get_mut(*at) {
            *byte ^= 0x10;
        }
        match host.with_disk(image).start().await {
            Err(_) => refused += 1,
            Ok((journal, store)) => {
                opened += 1;
                assert_eq!(store.vrots()?, [vrot], "byte {at}");
                assert_eq!(number_of(&journal, vrot).await?, Some(2), "byte {at}");
            }
        }
    }
    assert!(
        refused > 50 && opened > 0,
        "{refused} refused, {opened} opened"
    );
    Ok(())
}

/// The layout of version 1: stores in the field have it.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const VROTS: TableDefinition<'_, [u8; 17], &[u8]> = TableDefinition::new("vrots");
const BLOCKS: TableDefinition<'_, [u8; 19], &[u8]> = TableDefinition::new("blocks");
const CHAIN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("chain");
const LEAVES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("leaves");

fn raw_database(disk: &SimulatedDisk, version: u64) -> Result<Database> {
    let database = Builder::new().create_with_backend(disk.handle())?;
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", version)?;
    transaction.commit()?;
    Ok(database)
}

#[test]
fn version_one_of_the_layout_stays_readable() -> Result<()> {
    let disk = SimulatedDisk::default();
    let database = raw_database(&disk, 1)?;
    let transaction = database.begin_write()?;
    let vrot = VrotId::from_uuid(Uuid::from_bytes(*b"a virtual r.o.t."));
    {
        let mut vrots = transaction.open_table(VROTS)?;
        vrots.insert(b"a virtual r.o.t.\x01", b"record".as_slice())?;
        vrots.insert(b"a virtual r.o.t.\x02", b"permanent".as_slice())?;
        vrots.insert(b"a virtual r.o.t.\x03", b"volatile".as_slice())?;
        vrots.insert(b"a virtual r.o.t.\x04", b"saved".as_slice())?;
        let mut chain = transaction.open_table(CHAIN)?;
        chain.insert(7, b"link".as_slice())?;
        let mut leaves = transaction.open_table(LEAVES)?;
        leaves.insert(b"a virtual r.o.t.", b"leaf".as_slice())?;
    }
    transaction.commit()?;
    drop(database);

    let store = EmbeddedStore::on(disk)?;
    assert_eq!(store.vrots()?, [vrot]);
    for (part, contents) in [
        (Part::Record, b"record".as_slice()),
        (Part::Permanent, b"permanent"),
        (Part::Volatile, b"volatile"),
        (Part::Saved, b"saved"),
    ] {
        assert_eq!(store.read(vrot, part)?.as_deref(), Some(contents));
    }
    let ledger = store.ledger()?;
    assert_eq!(ledger.chain, [b"link".to_vec()]);
    assert_eq!(ledger.leaves.get(&vrot), Some(&b"leaf".to_vec()));
    Ok(())
}

/// Version 2 of the layout, likewise.
#[test]
fn a_store_of_version_two_stays_readable() -> Result<()> {
    let disk = SimulatedDisk::default();
    let database = raw_database(&disk, 2)?;
    let vrot = VrotId::from_uuid(Uuid::from_bytes(*b"a virtual r.o.t."));
    let transaction = database.begin_write()?;
    {
        let mut blocks = transaction.open_table(BLOCKS)?;
        blocks.insert(b"a virtual r.o.t.\x01\x00\x00", b"record".as_slice())?;
        blocks.insert(b"a virtual r.o.t.\x02\x00\x00", [7; 1024].as_slice())?;
        blocks.insert(b"a virtual r.o.t.\x02\x00\x01", b"rest".as_slice())?;
        transaction.open_table(CHAIN)?;
        transaction.open_table(LEAVES)?;
    }
    transaction.commit()?;
    drop(database);

    let store = EmbeddedStore::on(disk.clone())?;
    let read = |part| store.read(vrot, part);
    assert_eq!(store.vrots()?, [vrot]);
    assert_eq!(read(Part::Record)?.as_deref(), Some(b"record".as_slice()));
    let long = [[7; 1024].as_slice(), b"rest"].concat();
    assert_eq!(read(Part::Permanent)?, Some(long));
    assert_eq!(read(Part::Saved)?, None);

    // Shorter ones leave nothing of what was there, and empty ones are there.
    store.commit(&Batch::default().put(vrot, Part::Permanent, vec![8; 1024]))?;
    assert_eq!(read(Part::Permanent)?, Some(vec![8; 1024]));
    store.commit(&Batch::default().put(vrot, Part::Permanent, vec![]))?;
    assert_eq!(read(Part::Permanent)?, Some(vec![]));
    store.commit(&Batch::default().delete(vrot))?;
    assert_eq!((read(Part::Permanent)?, store.vrots()?), (None, vec![]));
    Ok(())
}

/// The state of a vRoT whose guest filled its NV memory.
const LARGE: usize = 133_000;
/// What one batch may write: pages of the database on the way to a few changed blocks, each copied.
const MOST_WRITTEN: u64 = 64 * 1024;

#[tokio::test]
async fn what_a_small_change_writes_does_not_depend_on_the_size_of_the_state() -> Result<()> {
    for others in [0, 200] {
        let host = Host::set_up()?;
        let (journal, store) = host.start().await?;
        for _ in 0..others {
            let other = VrotId::random();
            let change = record(other).put(other, Part::Permanent, vec![1; 5000]);
            journal.commit(change).await?;
        }
        let vrot = VrotId::random();
        let mut state = vec![7; LARGE];
        journal
            .commit(record(vrot).put(vrot, Part::Permanent, state.clone()))
            .await?;
        let before = store.written();
        for number in 0..50u8 {
            // As in a sealed state: its beginning, and a piece.
            for range in [..36, ..1024].map(|range| range.end) {
                let at = if range == 36 { 0 } else { LARGE / 2 };
                state
                    .get_mut(at..at + range)
                    .context("within the state")?
                    .fill(number);
            }
            journal
                .commit(Batch::default().put(vrot, Part::Permanent, state.clone()))
                .await?;
        }
        let written = (store.written() - before) / 50;
        ensure!(written <= MOST_WRITTEN, "{written} bytes beside {others}");
        assert_eq!(journal.read(vrot, Part::Permanent).await?, Some(state));
    }
    Ok(())
}

#[tokio::test]
async fn guests_that_write_without_rest_do_not_make_the_store_grow() -> Result<()> {
    // How long the chain is, no clock shall say here.
    let host = Host::set_up_with(AnchorPolicy::Strict)?;
    let (journal, _) = host.start().await?;
    let vrots = [(); 4].map(|()| VrotId::random());
    for vrot in vrots {
        journal.commit(record(vrot)).await?;
    }
    let rounds = |count: u32| {
        let journal = journal.clone();
        async move {
            for number in 0..count {
                // Some are longer than others, and all of them differ.
                let length = 4000 + (number as usize * 1777) % 30_000;
                let state = vec![number.to_be_bytes()[3]; length];
                for vrot in vrots {
                    let change = Batch::default().put(vrot, Part::Permanent, state.clone());
                    journal.commit(change).await?;
                }
            }
            Ok::<_, StoreError>(())
        }
    };
    rounds(800).await?;
    let length = host.disk.image().len();
    ensure!(length <= 512 * 1024, "{length} bytes");
    Ok(())
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() -> Result<()> {
    let disk = SimulatedDisk::default();
    drop(raw_database(&disk, 3)?);
    let refused = EmbeddedStore::on(disk).err().context("opened")?;
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused:?}");
    assert!(refused.to_string().contains("newer version"));
    Ok(())
}
