//! The part "anchor": how often the physical TPM's flash is written while all guests are busy.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{number, under_load};
use super::report::Report;

/// Writes are told from each other by time; those of one moment belong together only to us.
const LOOK: Duration = Duration::from_millis(100);
/// A checkpoint comes with the next batch, and a batch may take its time.
const SLACK: Duration = Duration::from_secs(60);

/// Waits under load for two checkpoints and takes the time between the first and the last
/// write; every write of the flash counts, whatever it is for.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    ours: &mut Fleet,
    tried_interval: Option<u64>,
) -> Result<()> {
    let limit = host.api().metrics()?;
    let limit = limit.value("vrot_rollback_window_limit_seconds")?;
    ensure!(
        limit > 0.0,
        "the anchor's policy is not one with checkpoints"
    );
    let limit = Duration::from_secs_f64(limit);
    let deadline = 2 * limit + SLACK;
    println!(
        "   busy until two checkpoints are seen: {} s at most",
        deadline.as_secs()
    );
    let (writes, progress) = under_load(&mut ours.vmms, |progress| {
        let before = host.tpm().traffic().flash.len();
        let begin = Instant::now();
        loop {
            thread::sleep(LOOK);
            let flash = host.tpm().traffic().flash;
            let writes = flash.get(before..).unwrap_or_default();
            let span = writes.first().zip(writes.last());
            let span = span.map_or(Duration::ZERO, |(first, last)| *last - *first);
            // Two writes of one moment are not two checkpoints.
            if span >= limit / 2 {
                return Ok((writes.len(), span));
            }
            ensure!(
                begin.elapsed() < deadline,
                "{} writes in {} s",
                writes.len(),
                begin.elapsed().as_secs()
            );
            ensure!(progress.failed() == 0, "commands failed under load");
        }
    })?;
    ensure!(progress.failed() == 0, "commands failed under load");
    let (count, span) = writes;
    let intervals = number(count)? - 1.0;
    ensure!(intervals >= 1.0, "a single write tells no rate");
    let name = match tried_interval {
        None => "anchor_writes_per_hour".to_owned(),
        Some(seconds) => format!("anchor_writes_per_hour_checkpoints_{seconds}_s"),
    };
    report.alone(name, intervals * 3600.0 / span.as_secs_f64(), "1/h", count);
    report.alone("anchor_window_s", span.as_secs_f64(), "s", 1);
    Ok(())
}
