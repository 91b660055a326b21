//! The part "writes": how long one guest waits for a durable NV write, and how many all guests
//! get done, beside swtpm, which does not wait for the disk, and the disk by itself.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Arguments;
use super::disk::{self, Disk};
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{Habit, number, rate, under_load};
use super::report::Report;
use super::restart::DURABILITY_DEADLINE;
use super::samples::Samples;
use crate::vmm::Vmm;

/// Turns change after so many writes.
const TURN: u32 = 20;
/// Turns that are thrown away before the part is given up.
const FAULTY_TURNS: u32 = 5;
/// Between two looks at the manager's metrics.
const PAUSE: Duration = Duration::from_secs(1);

/// One VM.
pub(super) fn measure_one(
    report: &mut Report,
    host: &BenchHost,
    disk: &Disk,
    ours: &mut Fleet,
    peers: &mut Fleet,
    count: u32,
) -> Result<()> {
    let mut bare = disk.bare_file()?;
    let (mut own, mut others, mut disks) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut commits, mut commands) = (Samples::default(), Samples::default());
    let mut faulty = 0;
    let mut left = count;
    while left > 0 {
        let turn = left.min(TURN);
        let Some(written) = durable_writes(host, ours.one()?, turn)? else {
            faulty += 1;
            ensure!(
                faulty <= FAULTY_TURNS,
                "in {faulty} turns a write was answered before it was durable: the disk is too \
                 slow or too busy"
            );
            continue;
        };
        left -= turn;
        own.extend(written.took.into_values());
        commands.extend(written.commands.into_values());
        for _ in 0..turn {
            others.add_us(timed_write(peers.one()?)?);
        }
        for _ in 0..turn {
            disks.add_us(bare.write()?);
        }
        for _ in 0..turn {
            commits.add_us(bare.write_pages(written.pages)?);
        }
    }
    report.beside(
        "nv_write_durable_p50_us",
        own.median()?,
        others.median()?,
        "µs",
        own.count(),
    );
    report.spread(&own)?;
    report.alone("fsync_p50_us", disks.median()?, "µs", disks.count());
    report.spread(&disks)?;
    report.alone(
        "fsync_same_size_p50_us",
        commits.median()?,
        "µs",
        commits.count(),
    );
    report.spread(&commits)?;
    report.alone(
        "tpm_command_p50_us",
        commands.median()?,
        "µs",
        commands.count(),
    );
    report.spread(&commands)?;
    // What is left of a write when disk and physical TPM have had their time.
    let overhead = own.median()? - commits.median()? - commands.median()?;
    report.alone("nv_write_overhead_us", overhead, "µs", own.count());
    Ok(())
}

/// The same for a physical TPM whose every command takes this long: each batch writes a register
/// of it. swtpm has no such wait, and the disk was measured before.
pub(super) fn measure_one_slowed(
    report: &mut Report,
    host: &BenchHost,
    ours: &mut Fleet,
    command: Duration,
    count: u32,
) -> Result<()> {
    host.tpm().slow_down(command);
    let mut own = Samples::default();
    let outcome = (|| {
        for _ in 0..count {
            own.add_us(timed_write(ours.one()?)?);
        }
        anyhow::Ok(())
    })();
    host.tpm().slow_down(Duration::ZERO);
    outcome?;
    report.alone(
        format!("nv_write_durable_p50_us{}", suffix(command)),
        own.median()?,
        "µs",
        own.count(),
    );
    report.spread(&own)
}

/// All VMs.
pub(super) fn measure_all(
    report: &mut Report,
    arguments: &Arguments,
    host: &BenchHost,
    disk: &Disk,
    ours: &mut Fleet,
    peers: &mut Fleet,
) -> Result<()> {
    let window = arguments.window();
    let mut bare = disk.bare_file()?;
    let mut others = Samples::default();
    let mut disks = Samples::default();
    let mut all = Windows::default();
    for _ in 0..arguments.rounds {
        all.add(&busy_window(host, ours, window)?);
        others.add(rate(&mut peers.vmms, window)?);
        disks.add(bare.rate(window)?);
    }
    let n = all.durable_per_s.count();
    let (own, fsyncs) = (all.durable_per_s.median()?, disks.median()?);
    report.beside("nv_writes_per_s", own, others.median()?, "1/s", n);
    report.spread(&all.durable_per_s)?;
    // The same figure beside the other peer: the disk, asked once for each write.
    report.beside("nv_writes_per_s_beside_fsyncs", own, fsyncs, "1/s", n);
    report.alone("fsyncs_per_s", fsyncs, "1/s", n);
    report.spread(&disks)?;
    all.report(report, "")
}

/// All VMs, and a physical TPM whose every command takes this long.
pub(super) fn measure_all_slowed(
    report: &mut Report,
    host: &BenchHost,
    ours: &mut Fleet,
    window: Duration,
    command: Duration,
) -> Result<()> {
    let mut all = Windows::default();
    host.tpm().slow_down(command);
    let busy = busy_window(host, ours, window);
    host.tpm().slow_down(Duration::ZERO);
    all.add(&busy?);
    let suffix = suffix(command);
    let n = all.durable_per_s.count();
    report.alone(
        format!("nv_writes_per_s{suffix}"),
        all.durable_per_s.median()?,
        "1/s",
        n,
    );
    all.report(report, &suffix)
}

fn suffix(command: Duration) -> String {
    format!("_tpm_commands_{}_ms", command.as_millis())
}

struct Busy {
    answered_per_s: f64,
    /// A degraded vRoT answers before its state is durable: what counts is what the store took.
    /// Of several writes of such a vRoT the store takes the last, which counts as one.
    durable_per_s: f64,
    durable_per_fsync: f64,
    registers_per_s: f64,
    degraded: f64,
}

/// What several windows brought.
#[derive(Default)]
struct Windows {
    answered_per_s: Samples,
    durable_per_s: Samples,
    durable_per_fsync: Samples,
    registers_per_s: Samples,
    degraded: f64,
}

impl Windows {
    fn add(&mut self, busy: &Busy) {
        self.answered_per_s.add(busy.answered_per_s);
        self.durable_per_s.add(busy.durable_per_s);
        self.durable_per_fsync.add(busy.durable_per_fsync);
        self.registers_per_s.add(busy.registers_per_s);
        self.degraded = self.degraded.max(busy.degraded);
    }

    fn report(&self, report: &mut Report, suffix: &str) -> Result<()> {
        for (name, samples, unit) in [
            ("nv_writes_answered_per_s", &self.answered_per_s, "1/s"),
            (
                "durable_writes_per_fsync",
                &self.durable_per_fsync,
                "durable writes per fsync of the store",
            ),
            ("volatile_anchor_writes_per_s", &self.registers_per_s, "1/s"),
        ] {
            report.alone(
                format!("{name}{suffix}"),
                samples.median()?,
                unit,
                samples.count(),
            );
            report.spread(samples)?;
        }
        report.alone(
            format!("degraded_vrots_under_load{suffix}"),
            self.degraded,
            "vRoTs",
            self.durable_per_s.count(),
        );
        Ok(())
    }
}

/// A window in which all guests write. Counts are taken at its two ends, in the middle of the
/// load.
fn busy_window(host: &BenchHost, ours: &mut Fleet, window: Duration) -> Result<Busy> {
    let (busy, progress) = under_load(&mut ours.vmms, Habit::Writing, |progress| {
        thread::sleep(window / 5);
        let begin = Instant::now();
        let writes = progress.succeeded();
        let registers = host.tpm().traffic().ram;
        let earlier = host.api().metrics()?;
        let mut degraded: f64 = 0.0;
        let metrics = loop {
            thread::sleep(PAUSE.min(window.saturating_sub(begin.elapsed())));
            let metrics = host.api().metrics()?;
            degraded = degraded.max(metrics.value("vrot_degraded")?);
            if begin.elapsed() >= window {
                break metrics;
            }
        };
        let grown =
            |name: &str| Ok::<_, anyhow::Error>(metrics.value(name)? - earlier.value(name)?);
        let fsyncs = grown("vrot_store_syncs_total")?;
        let registers = number(host.tpm().traffic().ram - registers)?;
        let writes = number(progress.succeeded() - writes)?;
        // Other changes may be among those of the store, but no write is more than one.
        let durable = grown("vrot_store_changes_total")?.min(writes);
        let took = begin.elapsed().as_secs_f64();
        ensure!(fsyncs > 0.0, "the store made nothing durable under load");
        Ok(Busy {
            answered_per_s: writes / took,
            durable_per_s: durable / took,
            durable_per_fsync: durable / fsyncs,
            registers_per_s: registers / took,
            degraded,
        })
    })?;
    ensure!(
        progress.failed() == 0,
        "{} commands failed under load",
        progress.failed()
    );
    Ok(busy)
}

/// A turn of writes of one VM.
struct Turn {
    /// How long the guest waited, in µs.
    took: Samples,
    /// How long the command of the physical TPM took that belongs to each, in µs.
    commands: Samples,
    /// What each made the store write, in pages.
    pages: u64,
}

/// A turn of writes; `None` if any of them may have been answered at the durability deadline,
/// instead of when it was durable.
fn durable_writes(host: &BenchHost, vmm: &mut Vmm, turn: u32) -> Result<Option<Turn>> {
    let (mut took, mut commands) = (Samples::default(), Samples::default());
    let earlier = host.api().metrics()?;
    for _ in 0..turn {
        took.add_us(timed_write(vmm)?);
        commands.add_us(host.tpm().last_ram());
    }
    let later = host.api().metrics()?;
    let grown = |name: &str| Ok::<_, anyhow::Error>(later.value(name)? - earlier.value(name)?);
    let stored = grown("vrot_store_changes_total")?;
    let late = took.above(DURABILITY_DEADLINE.as_secs_f64() * 1e6);
    let all_durable = stored >= number(turn)? && late == 0 && later.value("vrot_degraded")? == 0.0;
    let bytes = grown("vrot_store_written_bytes_total")? / grown("vrot_store_commits_total")?;
    let pages = disk::pages(bytes);
    Ok(all_durable.then_some(Turn {
        took,
        commands,
        pages,
    }))
}

fn timed_write(vmm: &mut Vmm) -> Result<Duration> {
    let begin = Instant::now();
    vmm.must_write().context("one VM")?;
    Ok(begin.elapsed())
}
