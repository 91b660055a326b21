//! A host for tests: a disk that can be put back to any earlier image, a TPM that can be reset,
//! and a manager that can be killed between any two writes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use cert_chain::{Generation, VrotId};

use guarded_state::disk::{Epoch, LedgerWrites, Part};
use guarded_state::ledger::leaf::part_digest;
use guarded_state::ledger::{
    AnchorPolicy, AnchorRegisters, Boot, Changes, CommitError, Decision, Leaf, Ledger, Moment,
    PartDigests, Readings, RecoveryRecord, Refusal, Refused, RollbackKeys, Stored, decide,
};
use guarded_state::testing::FakeRegisters;

/// What is durable on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) chain: BTreeMap<Epoch, Vec<u8>>,
    pub(crate) leaves: BTreeMap<VrotId, Vec<u8>>,
    pub(crate) vrots: BTreeMap<VrotId, StoredVrot>,
}

/// What is stored of one vRoT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredVrot {
    pub(crate) parts: BTreeMap<Part, Vec<u8>>,
}

/// One change of one vRoT.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Create(VrotId),
    Write(VrotId, Part, Vec<u8>),
    Delete(VrotId),
    Raise(VrotId),
}

/// Where a commit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Works,
    /// The manager dies before the transaction is durable.
    DiesBefore,
    /// The manager dies when the transaction is durable.
    DiesAfter,
}

pub(crate) struct Host {
    pub(crate) keys: RollbackKeys,
    pub(crate) registers: FakeRegisters,
    pub(crate) policy: AnchorPolicy,
    pub(crate) image: Image,
    pub(crate) ledger: Option<Ledger<FakeRegisters>>,
    /// How far this host's clocks are ahead of the machine's.
    passed: Duration,
    /// What the clock on the wall shows, if not the same.
    wall: Option<SystemTime>,
}

impl Host {
    /// A host that is set up, with no vRoT, running.
    pub(crate) fn initialised(policy: AnchorPolicy) -> Result<Self> {
        let mut host = Self::blank(policy);
        host.init(Disk::Works)?;
        Ok(host)
    }

    /// A host on which nothing ever ran.
    pub(crate) fn blank(policy: AnchorPolicy) -> Self {
        Self {
            keys: RollbackKeys::derive(&[7; 32]),
            registers: FakeRegisters::blank(),
            policy,
            image: Image::default(),
            ledger: None,
            passed: Duration::ZERO,
            wall: None,
        }
    }

    /// Time passes.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.passed += Duration::from_secs(seconds);
    }

    /// Somebody takes the clock's battery out.
    pub(crate) fn put_clock_back_to_1970(&mut self) {
        self.wall = Some(SystemTime::UNIX_EPOCH);
    }

    /// This moment, by the host's clocks.
    pub(crate) fn now(&self) -> Moment {
        let now = Moment::now();
        Moment {
            wall: self.wall.unwrap_or(now.wall + self.passed),
            monotonic: now.monotonic + self.passed,
        }
    }

    pub(crate) fn init(&mut self, disk: Disk) -> Result<()> {
        let Decision::FirstStart(first) = self.decide() else {
            bail!("not a first start");
        };
        let now = self.now();
        let image = &mut self.image;
        let ledger = first.begin(self.registers.clone(), self.policy, now, |writes| {
            write(image, disk, writes, &[])
        })?;
        self.ledger = Some(ledger);
        Ok(())
    }

    pub(crate) fn decide(&self) -> Decision {
        let readings =
            Readings::take(&mut self.registers.clone()).unwrap_or_else(|e| panic!("{e}"));
        decide(&self.keys, &self.image.stored(), &readings)
    }

    /// Starts the manager; a refusal changes nothing, and that is checked.
    pub(crate) fn start(&mut self) -> Result<Boot, Box<Refused>> {
        match self.start_on(Disk::Works) {
            Ok(Ok(boot)) => Ok(boot),
            Ok(Err(refused)) => Err(refused),
            Err(error) => panic!("{error:#}"),
        }
    }

    pub(crate) fn start_on(&mut self, disk: Disk) -> Result<Result<Boot, Box<Refused>>> {
        let before = Readings::take(&mut self.registers.clone())?;
        let start = match self.decide() {
            Decision::Equal(start) | Decision::AheadByChain(start) => start,
            Decision::FirstStart(_) => bail!("a manager starts on a blank host"),
            Decision::Refused(refused) => {
                assert_eq!(before, Readings::take(&mut self.registers.clone())?);
                return Ok(Err(refused));
            }
        };
        let boot = start.boot();
        let now = self.now();
        let image = &mut self.image;
        let ledger = start.begin(self.registers.clone(), self.policy, now, |writes| {
            write(image, disk, writes, &[])
        })?;
        self.ledger = Some(ledger);
        Ok(Ok(boot))
    }

    /// The refusal that a start ends with.
    pub(crate) fn refusal(&mut self) -> Result<Refusal> {
        let refused = self.start().err().context("the start was not refused")?;
        Ok(refused.refusal().clone())
    }

    pub(crate) fn commit(&mut self, edits: &[Edit]) -> Result<Epoch> {
        self.commit_on(Disk::Works, edits)
    }

    pub(crate) fn commit_on(&mut self, disk: Disk, edits: &[Edit]) -> Result<Epoch> {
        let now = self.now();
        let ledger = self.ledger.as_mut().context("the manager is down")?;
        let mut generation = ledger.head().highest();
        if edits.iter().any(|edit| matches!(edit, Edit::Raise(_))) {
            generation = self.registers.new_generation(generation)?;
        }
        let mut changes = Changes::default();
        for edit in edits {
            match edit {
                Edit::Create(vrot) => {
                    changes.set_generation(*vrot, FIRST);
                    changes.put(*vrot, Part::Record, &record(*vrot, FIRST));
                }
                Edit::Write(vrot, part, contents) => changes.put(*vrot, *part, contents),
                Edit::Delete(vrot) => changes.delete(*vrot),
                Edit::Raise(vrot) => {
                    changes.set_generation(*vrot, generation);
                    changes.put(*vrot, Part::Record, &record(*vrot, generation));
                }
            }
        }
        let edits: Vec<_> = edits.iter().map(|edit| (edit, generation)).collect();
        let image = &mut self.image;
        let committed = ledger.commit(&changes, now, |writes| write(image, disk, writes, &edits));
        if let Err(CommitError::Store(_) | CommitError::Unanchored { .. }) = &committed {
            self.kill();
        }
        Ok(committed?)
    }

    /// `kill -9` of the manager.
    pub(crate) fn kill(&mut self) {
        self.ledger = None;
    }

    /// The host loses power.
    pub(crate) fn lose_power(&mut self) {
        self.kill();
        self.registers.reset();
    }

    /// The host shuts down and starts again.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        self.ledger
            .as_mut()
            .context("the manager is down")?
            .close()?;
        self.lose_power();
        Ok(())
    }

    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        Ok(self
            .ledger
            .as_mut()
            .context("the manager is down")?
            .checkpoint()?)
    }

    /// An operator accepts what is there.
    pub(crate) fn recover(&mut self, code: &str, disk: Disk) -> Result<RecoveryRecord> {
        let Decision::Refused(refused) = self.decide() else {
            bail!("there is nothing to recover");
        };
        let recovery = refused.accept(code, &mut self.registers.clone())?;
        let generation = recovery.generation();
        let mut vrots = self.image.vrots.clone();
        vrots.retain(|vrot, _| !recovery.discarded().contains(vrot));
        for vrot in recovery.raised() {
            let stored = vrots.get_mut(vrot).context("no such vRoT")?;
            stored.put_record(*vrot, generation);
        }
        let rewritten = (recovery.raised().iter())
            .map(|vrot| (*vrot, vrots.get(vrot).map(StoredVrot::leaf)))
            .collect();
        let now = self.now();
        let image = &mut self.image;
        let (ledger, record) = recovery.carry_out(
            self.registers.clone(),
            rewritten,
            self.policy,
            now,
            |writes| {
                write(image, disk, writes, &[])?;
                image.vrots = vrots;
                if disk == Disk::DiesAfter {
                    return Err(Died);
                }
                Ok(())
            },
        )?;
        self.ledger = Some(ledger);
        Ok(record)
    }
}

/// The manager's process ended.
#[derive(Debug, thiserror::Error)]
#[error("killed")]
pub(crate) struct Died;

const FIRST: Generation = Generation::new(1);

fn record(vrot: VrotId, generation: Generation) -> Vec<u8> {
    [
        vrot.as_bytes(),
        generation.number().to_be_bytes().as_slice(),
    ]
    .concat()
}

/// The default policy, and `strict`.
pub(crate) fn policies() -> [AnchorPolicy; 2] {
    [AnchorPolicy::default(), AnchorPolicy::Strict]
}

fn write(
    image: &mut Image,
    disk: Disk,
    writes: &LedgerWrites,
    edits: &[(&Edit, Generation)],
) -> Result<(), Died> {
    if disk == Disk::DiesBefore {
        return Err(Died);
    }
    image.chain = image.chain.split_off(&writes.prune_below);
    image.chain.insert(writes.epoch, writes.record.clone());
    for (vrot, leaf) in &writes.leaves {
        match leaf {
            Some(leaf) => image.leaves.insert(*vrot, leaf.clone()),
            None => image.leaves.remove(vrot),
        };
    }
    for (edit, generation) in edits {
        image.edit(edit, *generation);
    }
    if disk == Disk::DiesAfter && !edits.is_empty() {
        return Err(Died);
    }
    Ok(())
}

impl Image {
    pub(crate) fn stored(&self) -> Stored {
        Stored {
            chain: self.chain.values().cloned().collect(),
            leaves: self.leaves.clone(),
            contents: (self.vrots.iter())
                .map(|(vrot, stored)| (*vrot, stored.digests()))
                .collect(),
        }
    }

    fn edit(&mut self, edit: &Edit, generation: Generation) {
        match edit {
            Edit::Create(vrot) => {
                let stored = self.vrots.entry(*vrot).or_default();
                stored.put_record(*vrot, FIRST);
            }
            Edit::Write(vrot, part, contents) => {
                let stored = self.vrots.entry(*vrot).or_default();
                stored.parts.insert(*part, contents.clone());
            }
            Edit::Delete(vrot) => {
                self.vrots.remove(vrot);
            }
            Edit::Raise(vrot) => {
                let stored = self.vrots.entry(*vrot).or_default();
                stored.put_record(*vrot, generation);
            }
        }
    }
}

impl StoredVrot {
    /// The generation that the record states; zero without one.
    pub(crate) fn generation(&self) -> Generation {
        let record = self.parts.get(&Part::Record);
        let stated = record.and_then(|record| record.last_chunk());
        stated.map_or(Generation::default(), |bytes| {
            Generation::new(u64::from_be_bytes(*bytes))
        })
    }

    pub(crate) fn put_record(&mut self, vrot: VrotId, generation: Generation) {
        self.parts.insert(Part::Record, record(vrot, generation));
    }

    fn digests(&self) -> PartDigests {
        (self.parts.iter())
            .map(|(part, contents)| (*part, part_digest(*part, contents)))
            .collect()
    }

    fn leaf(&self) -> Leaf {
        Leaf::over(self.generation(), self.digests())
    }
}

/// A running host with two vRoTs that a checkpoint covers.
pub(crate) fn two_vrots(policy: AnchorPolicy) -> Result<(Host, VrotId, VrotId)> {
    let mut host = Host::initialised(policy)?;
    let (one, two) = (VrotId::random(), VrotId::random());
    host.commit(&[Edit::Create(one), Edit::Create(two)])?;
    host.commit(&[state(one, 1), state(two, 1)])?;
    host.checkpoint()?;
    Ok((host, one, two))
}

pub(crate) fn state(vrot: VrotId, number: u8) -> Edit {
    Edit::Write(
        vrot,
        Part::Permanent,
        vec![number; 40]
            .into_iter()
            .chain(*vrot.as_bytes())
            .collect(),
    )
}

pub(crate) fn checkpoint() -> AnchorPolicy {
    AnchorPolicy::default()
}
