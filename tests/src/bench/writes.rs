//! The part "writes": how long one guest waits for a durable NV write, and how many all guests
//! get done, beside swtpm, which does not wait for the disk, and the disk by itself.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Arguments;
use super::disk::Disk;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{number, rate, under_load};
use super::report::Report;
use super::samples::Samples;
use super::vmm::Vmm;

/// Turns change after so many writes.
const TURN: u32 = 20;
/// Between two looks at the manager's metrics.
const PAUSE: Duration = Duration::from_secs(1);

/// One VM.
pub(super) fn measure_one(
    report: &mut Report,
    disk: &Disk,
    ours: &mut Fleet,
    peers: &mut Fleet,
    count: u32,
) -> Result<()> {
    let mut bare = disk.bare_file()?;
    let (mut own, mut others, mut disks) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut left = count;
    while left > 0 {
        let turn = left.min(TURN);
        left -= turn;
        for _ in 0..turn {
            own.add_us(timed_write(ours.one()?)?);
        }
        for _ in 0..turn {
            others.add_us(timed_write(peers.one()?)?);
        }
        for _ in 0..turn {
            disks.add_us(bare.write()?);
        }
    }
    let n = own.count();
    report.beside(
        "nv_write_durable_p50_us",
        own.median()?,
        others.median()?,
        "µs",
        n,
    );
    report.alone("fsync_p50_us", disks.median()?, "µs", disks.count());
    Ok(())
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
    let mut own = Samples::default();
    let mut others = Samples::default();
    let mut disks = Samples::default();
    let mut batches = Samples::default();
    let mut registers = Samples::default();
    let mut degraded: f64 = 0.0;
    for _ in 0..arguments.rounds {
        let busy = busy_window(host, ours, window)?;
        own.add(busy.writes_per_s);
        batches.add(busy.writes_per_commit);
        registers.add(busy.registers_per_s);
        degraded = degraded.max(busy.degraded);
        others.add(rate(&mut peers.vmms, window)?);
        disks.add(bare.rate(window)?);
    }
    let n = own.count();
    let (own, disk) = (own.median()?, disks.median()?);
    report.beside("nv_writes_per_s", own, others.median()?, "1/s", n);
    report.alone("fsyncs_per_s", disk, "1/s", n);
    report.alone(
        "nv_writes_per_fsync",
        batches.median()?,
        "writes per commit of the store",
        n,
    );
    report.alone(
        "nv_writes_per_s_over_fsyncs_per_s",
        own / disk,
        "writes per bare fsync",
        n,
    );
    report.alone(
        "volatile_anchor_writes_per_s",
        registers.median()?,
        "1/s",
        n,
    );
    report.alone("degraded_vrots_under_load", degraded, "vRoTs", n);
    Ok(())
}

struct Busy {
    writes_per_s: f64,
    /// The store waits for the disk once in each commit.
    writes_per_commit: f64,
    registers_per_s: f64,
    degraded: f64,
}

/// A window in which all guests write. Counts are taken at its two ends, in the middle of the
/// load.
fn busy_window(host: &BenchHost, ours: &mut Fleet, window: Duration) -> Result<Busy> {
    let (busy, progress) = under_load(&mut ours.vmms, |progress| {
        thread::sleep(window / 5);
        let begin = Instant::now();
        let writes = progress.succeeded();
        let registers = host.tpm().traffic().ram;
        let commits = host.api().metrics()?.value("vrot_store_commits_total")?;
        let mut degraded: f64 = 0.0;
        let metrics = loop {
            thread::sleep(PAUSE.min(window.saturating_sub(begin.elapsed())));
            let metrics = host.api().metrics()?;
            degraded = degraded.max(metrics.value("vrot_degraded")?);
            if begin.elapsed() >= window {
                break metrics;
            }
        };
        let commits = metrics.value("vrot_store_commits_total")? - commits;
        let registers = number(host.tpm().traffic().ram - registers)?;
        let writes = number(progress.succeeded() - writes)?;
        let took = begin.elapsed().as_secs_f64();
        ensure!(commits > 0.0, "the store committed nothing under load");
        Ok(Busy {
            writes_per_s: writes / took,
            writes_per_commit: writes / commits,
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

fn timed_write(vmm: &mut Vmm) -> Result<Duration> {
    let begin = Instant::now();
    vmm.must_write().context("one VM")?;
    Ok(begin.elapsed())
}
