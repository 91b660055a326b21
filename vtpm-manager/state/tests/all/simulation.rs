//! Random histories: commits, checkpoints, crashes between any two writes, losses of power, and
//! an attacker who puts the disk back to any earlier image or mixes two. What a start accepts is
//! held against a model that knows nothing of links and hashes: it knows which image came from
//! which.

#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use cert_chain::{Generation, VrotId};

use guarded_state::disk::Part;
use guarded_state::ledger::chain::{ChainRecord, Kind, Link};
use guarded_state::ledger::{AnchorPolicy, Decision, Leave, Reading, Register, RegisteredHead};
use guarded_state::testing::{FailedWrite, Fuse};

use crate::host::{Disk, Edit, Host, Image, policies};
use crate::random::Random;

/// Every image that was ever durable, and where it came from.
struct History {
    images: Vec<Durable>,
    by_link: BTreeMap<[u8; 32], usize>,
}

struct Durable {
    image: Image,
    /// The image before it; a recovery also comes from what the registers named.
    from: Vec<usize>,
    changes: bool,
}

struct World {
    host: Host,
    history: History,
    random: Random,
    /// The image on the disk, as long as the attacker left it alone.
    current: usize,
    /// The newest image that somebody was told of.
    acknowledged: usize,
    /// Whether the disk was meddled with since the manager ran last.
    meddled: bool,
    /// What the newest recovery left on the disk, if it came so far.
    unfinished: Option<usize>,
    /// Generations that a verifier may have seen.
    seen: BTreeMap<VrotId, Generation>,
    tally: Tally,
}

/// What happened: a simulation in which nothing is refused shows nothing.
#[derive(Debug, Default)]
struct Tally {
    accepted: u32,
    accepted_older: u32,
    refused: BTreeMap<&'static str, u32>,
    recovered: u32,
    removed: u32,
}

const HISTORIES: u64 = 150;
const STEPS: usize = 120;
const VROTS: usize = 5;

#[test]
fn exactly_the_allowed_images_are_accepted() -> Result<()> {
    let mut tally = Tally::default();
    for policy in policies() {
        for seed in 0..HISTORIES {
            let mut world = World::new(policy, seed)?;
            for step in 0..STEPS {
                world
                    .step()
                    .with_context(|| format!("{policy:?}, seed {seed}, step {step}"))?;
            }
            tally.add(world.tally);
        }
    }
    ensure!(tally.accepted > 1000, "{tally:?}");
    ensure!(tally.accepted_older > 20, "{tally:?}");
    ensure!(tally.recovered > 200 && tally.removed > 200, "{tally:?}");
    for code in [
        "altered-tree",
        "cleared-tpm",
        "missing-records",
        "other-branch",
        "restored-store",
        "returned-records",
        "stale-records",
        "swapped-records",
        "truncated-chain",
        "volatile-ahead",
        "volatile-removed",
    ] {
        ensure!(tally.refused.contains_key(code), "{code} never: {tally:?}");
    }
    Ok(())
}

impl World {
    fn new(policy: AnchorPolicy, seed: u64) -> Result<Self> {
        let mut world = Self {
            host: Host::initialised(policy)?,
            history: History {
                images: Vec::new(),
                by_link: BTreeMap::new(),
            },
            random: Random::seeded(seed),
            current: 0,
            acknowledged: 0,
            meddled: false,
            unfinished: None,
            seen: BTreeMap::new(),
            tally: Tally::default(),
        };
        world.record(vec![])?;
        Ok(world)
    }

    fn step(&mut self) -> Result<()> {
        if self.host.ledger.is_some() {
            self.step_running()
        } else {
            self.step_stopped()
        }
    }

    fn step_running(&mut self) -> Result<()> {
        match self.random.below(20) {
            0 => self.host.kill(),
            1 => self.host.lose_power(),
            2 => {
                self.host.reboot()?;
            }
            3 | 4 => {
                self.light_fuse();
                if self.host.checkpoint().is_err() {
                    self.host.kill();
                }
                self.host.registers.set_fuse(None);
            }
            5..=7 => self.crash_in_commit()?,
            _ => {
                let edits = self.edits();
                let before = self.current;
                self.host.commit(&edits)?;
                self.record(vec![before])?;
                self.acknowledge();
            }
        }
        Ok(())
    }

    fn crash_in_commit(&mut self) -> Result<()> {
        let edits = self.edits();
        let before = self.host.image.clone();
        let disk = match self.random.below(3) {
            0 => Disk::DiesBefore,
            1 => Disk::DiesAfter,
            _ => {
                self.light_fuse();
                Disk::Works
            }
        };
        let committed = self.host.commit_on(disk, &edits);
        self.host.registers.set_fuse(None);
        if self.host.image != before {
            self.record(vec![self.current])?;
        }
        if committed.is_ok() {
            self.acknowledge();
        }
        Ok(())
    }

    fn step_stopped(&mut self) -> Result<()> {
        match self.random.below(9) {
            0 => self.host.registers.reset(),
            8 => self.remove_indices(),
            1 | 2 => {
                let image = self.random.below(self.history.images.len());
                self.host.image = self.history.images[image].image.clone();
                self.meddled = true;
            }
            3 => self.mix()?,
            _ => self.start()?,
        }
        Ok(())
    }

    /// The owner of the TPM removes one index, or both.
    fn remove_indices(&mut self) {
        let which = self.random.below(3);
        for (number, register) in Register::BOTH.into_iter().enumerate() {
            if which != number {
                self.host.registers.set(register, Reading::Absent);
            }
        }
        self.tally.removed += 1;
    }

    /// Takes chain, leaves and contents from different images, or mixes vRoTs up.
    fn mix(&mut self) -> Result<()> {
        let [one, two] = [(); 2].map(|()| self.random.below(self.history.images.len()));
        let [one, two] = [one, two].map(|at| self.history.images[at].image.clone());
        let image = &mut self.host.image;
        match self.random.below(7) {
            0 => image.chain.clone_from(&one.chain),
            1 => image.leaves.clone_from(&one.leaves),
            2 => {
                image.leaves.clone_from(&one.leaves);
                image.vrots.clone_from(&one.vrots);
            }
            3 => {
                // One vRoT of another image, the rest as it is.
                if let Some((vrot, stored)) = two.vrots.iter().next() {
                    image.vrots.insert(*vrot, stored.clone());
                }
            }
            4 => {
                let vrots: Vec<VrotId> = image.vrots.keys().copied().collect();
                if let [first, .., last] = vrots.as_slice() {
                    let moved = [*first, *last].map(|vrot| image.vrots.get(&vrot).cloned());
                    let [Some(one), Some(two)] = moved else {
                        return Ok(());
                    };
                    image.vrots.insert(*last, one);
                    image.vrots.insert(*first, two);
                }
            }
            5 => {
                image.vrots.pop_first();
            }
            _ => {
                let at = self.random.below(image.chain.len());
                if let Some(epoch) = image.chain.keys().nth(at).copied() {
                    image.chain.remove(&epoch);
                }
            }
        }
        self.meddled = true;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let image = self.history.find(&self.host.image);
        let allowed = match image {
            Some(image) => self.is_allowed(image)?,
            None => false,
        };
        if matches!(self.host.decide(), Decision::FirstStart(_)) {
            // Emptied altogether: waits for `host init`. The operator finds the newest store.
            ensure!(!allowed, "an empty store is allowed");
            self.host.image = self.history.images[self.current].image.clone();
            return Ok(());
        }
        let before = self.host.image.clone();
        let disk = [Disk::Works, Disk::Works, Disk::Works, Disk::DiesBefore][self.random.below(4)];
        if self.random.below(4) == 0 {
            self.light_fuse();
        }
        let started = self.host.start_on(disk);
        self.host.registers.set_fuse(None);
        let refused = match started {
            // It died on the way: accepted, but not up.
            Err(_) => {
                self.host.kill();
                None
            }
            Ok(Ok(_)) => None,
            Ok(Err(refused)) => Some(refused),
        };
        if let Some(refused) = refused {
            let refusal = refused.refusal();
            let damaged = image.is_some_and(|at| self.history.images[at].image != before);
            ensure!(!allowed || damaged, "refused what is allowed: {refusal}");
            ensure!(self.host.image == before, "a refusal changed the store");
            *self.tally.refused.entry(refusal.code()).or_default() += 1;
            return self.after_refusal(refusal.code(), refusal.is_recoverable());
        }
        ensure!(allowed, "accepted what is not allowed");
        let image = image.context("an image that never was")?;
        if !self.meddled {
            ensure!(
                self.history.descends(image, self.acknowledged),
                "something acknowledged is lost"
            );
        }
        self.tally.accepted += 1;
        if !self.history.descends(image, self.acknowledged) {
            self.tally.accepted_older += 1;
        }
        self.current = image;
        if self.host.image != before {
            self.record(vec![image])?;
        }
        if self.host.ledger.is_some() {
            self.acknowledge();
        }
        Ok(())
    }

    fn after_refusal(&mut self, code: &'static str, is_recoverable: bool) -> Result<()> {
        if !is_recoverable || self.random.below(3) > 0 {
            // The operator finds the newest store.
            if self.random.below(2) == 0 {
                self.host.image = self.history.images[self.current].image.clone();
            }
            return Ok(());
        }
        let held = self.held()?;
        let before = self.host.image.clone();
        let mut from: Vec<usize> = self.history.find(&before).into_iter().collect();
        from.extend(
            [held.0, held.1.map(|(image, _)| image)]
                .into_iter()
                .flatten(),
        );
        let disk = [Disk::Works, Disk::DiesBefore, Disk::DiesAfter][self.random.below(3)];
        if self.random.below(3) == 0 {
            self.light_fuse();
        }
        self.unfinished = None;
        let recovered = self.host.recover(code, disk);
        self.host.registers.set_fuse(None);
        if self.host.image != before {
            self.record(from)?;
            self.unfinished = Some(self.current);
            self.meddled = true;
        }
        match recovered {
            Ok(record) => {
                self.tally.recovered += 1;
                for vrot in &record.raised {
                    let seen = self.seen.get(vrot);
                    ensure!(
                        seen.is_none_or(|seen| *seen < record.generation),
                        "two histories of {vrot} share a generation"
                    );
                }
                self.acknowledge();
            }
            Err(_) => self.host.kill(),
        }
        Ok(())
    }

    /// The rule, in terms of which image came from which.
    fn is_allowed(&self, image: usize) -> Result<bool> {
        let (volatile, durable) = self.held()?;
        let registers = Register::BOTH.map(|register| self.host.registers.peek(register));
        if registers.contains(&Reading::Absent) {
            return Ok(false);
        }
        // Defined anew by a recovery that was cut short: nothing but that one is finished.
        if durable.is_none() && self.unfinished != Some(image) {
            return Ok(false);
        }
        if let Some(volatile) = volatile {
            let follows = self.history.images[image].from.contains(&volatile);
            return Ok(image == volatile || follows);
        }
        let Some((durable, leave)) = durable else {
            return Ok(true);
        };
        let allowed = match leave {
            Leave::Closed => 0,
            Leave::OneBatch => 1,
            Leave::Checkpoint(_) => usize::MAX,
        };
        let ahead = self.history.changes_between(durable, image);
        Ok(ahead.is_some_and(|ahead| ahead <= allowed))
    }

    /// The images that the registers name.
    #[expect(
        clippy::type_complexity,
        reason = "one caller more does not need a name"
    )]
    fn held(&self) -> Result<(Option<usize>, Option<(usize, Leave)>)> {
        let open = |register| match self.host.registers.peek(register) {
            Reading::Written(contents) => {
                RegisteredHead::open(&self.host.keys, register, &contents)
            }
            _ => None,
        };
        let image = |link: Link| {
            let found = self.history.by_link.get(link.as_bytes());
            found.copied().context("a register names no image")
        };
        let volatile = open(Register::Volatile).map(|anchor| image(anchor.link()));
        let durable = open(Register::Durable)
            .map(|anchor| anyhow::Ok((image(anchor.link())?, anchor.leave())));
        Ok((volatile.transpose()?, durable.transpose()?))
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.current;
        self.meddled = false;
        for (vrot, stored) in &self.host.image.vrots {
            let seen = self.seen.entry(*vrot).or_default();
            *seen = stored.generation().max(*seen);
        }
    }

    /// The host's image is a new one.
    fn record(&mut self, from: Vec<usize>) -> Result<()> {
        let image = self.host.image.clone();
        let newest = image.chain.values().next_back().context("no chain")?;
        let batch = ChainRecord::open(&self.host.keys, newest)?;
        self.current = self.history.images.len();
        let known = self
            .history
            .by_link
            .insert(*batch.link().as_bytes(), self.current);
        ensure!(known.is_none(), "two images with one link");
        self.history.images.push(Durable {
            image,
            from,
            changes: *batch.kind() == Kind::Changes,
        });
        Ok(())
    }

    fn light_fuse(&mut self) {
        let write = [FailedWrite::Happened, FailedWrite::Lost][self.random.below(2)];
        let after = self.random.below(3);
        self.host.registers.set_fuse(Some(Fuse { after, write }));
    }

    fn edits(&mut self) -> Vec<Edit> {
        let vrots: Vec<VrotId> = self.host.image.vrots.keys().copied().collect();
        if vrots.len() < VROTS && self.random.below(2) == 0 {
            return vec![Edit::Create(self.random.vrot())];
        }
        let count = 1 + self.random.below(3);
        let mut edits = Vec::new();
        let mut touched = BTreeSet::new();
        for _ in 0..count {
            if vrots.is_empty() {
                break;
            }
            let vrot = vrots[self.random.below(vrots.len())];
            if !touched.insert(vrot) {
                continue;
            }
            edits.push(match self.random.below(12) {
                0 => Edit::Delete(vrot),
                1 => Edit::Raise(vrot),
                2 => Edit::Write(vrot, Part::Volatile, self.random.bytes::<8>().to_vec()),
                _ => Edit::Write(vrot, Part::Permanent, self.random.bytes::<8>().to_vec()),
            });
        }
        if edits.is_empty() {
            edits.push(Edit::Create(self.random.vrot()));
        }
        edits
    }
}

impl History {
    /// The image with these contents and this newest batch. Older chain records may lack: where
    /// they are needed the start is refused, and where not they might have been pruned.
    fn find(&self, image: &Image) -> Option<usize> {
        let same = |durable: &Durable| {
            let Image {
                chain,
                leaves,
                vrots,
            } = &durable.image;
            (leaves, vrots) == (&image.leaves, &image.vrots)
                && chain.last_key_value() == image.chain.last_key_value()
        };
        self.images.iter().rposition(same)
    }

    fn descends(&self, image: usize, from: usize) -> bool {
        self.changes_between(from, image).is_some()
    }

    /// How many batches of changes lie between two images; `None` where the one does not come
    /// from the other. The fewest, where a recovery makes for two ways.
    fn changes_between(&self, older: usize, newer: usize) -> Option<usize> {
        if older == newer {
            return Some(0);
        }
        if newer < older {
            return None;
        }
        let durable = &self.images[newer];
        let before = (durable.from.iter())
            .filter_map(|from| self.changes_between(older, *from))
            .min()?;
        Some(before + usize::from(durable.changes))
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.accepted_older += other.accepted_older;
        self.recovered += other.recovered;
        self.removed += other.removed;
        for (code, count) in other.refused {
            *self.refused.entry(code).or_default() += count;
        }
    }
}
