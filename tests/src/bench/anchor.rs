//! The part "anchor": how often the physical TPM's flash is written while all guests are busy.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Arguments;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{Habit, number, under_load};
use super::report::Report;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// A checkpoint comes with the next batch, and a batch may take its time.
const SLACK: Duration = Duration::from_secs(60);

/// Writes of the flash, and the time from the first to the last of them.
struct Span {
    writes: usize,
    time: Duration,
}

/// Waits under load until two checkpoint intervals lie between a write and a later one, both
/// after `since`, from when on guests were busy. Every write of the flash counts, whatever it is for.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    ours: &mut Fleet,
    arguments: &Arguments,
    since: Instant,
) -> Result<()> {
    let limit = host.api().metrics()?;
    let limit = limit.value("vrot_rollback_window_limit_seconds")?;
    ensure!(
        limit > 0.0,
        "the anchor's policy is not one with checkpoints"
    );
    let limit = Duration::from_secs_f64(limit);
    // The first write may take an interval to come.
    let deadline = 3 * limit + SLACK;
    println!(
        "   busy until three checkpoints are seen: {} s at most",
        deadline.saturating_sub(since.elapsed()).as_secs()
    );
    let habit = Habit::Living {
        think: arguments.think(),
    };
    let (span, progress) = under_load(&mut ours.vmms, habit, |progress| {
        let begin = Instant::now();
        loop {
            let span = Span::since(since, &host.tpm().traffic().flash);
            if span.has_two_of(limit) {
                return Ok(span);
            }
            ensure!(
                begin.elapsed() < deadline,
                "{} writes in {} s",
                span.writes,
                since.elapsed().as_secs()
            );
            ensure!(progress.failed() == 0, "commands failed under load");
            thread::sleep(LOOK);
        }
    })?;
    ensure!(progress.failed() == 0, "commands failed under load");
    let name = match arguments.checkpoint_interval_s {
        None => "anchor_writes_per_hour".to_owned(),
        Some(seconds) => format!("anchor_writes_per_hour_checkpoints_{seconds}_s"),
    };
    report.alone(name, span.per_hour()?, "1/h", span.intervals());
    report.alone(
        "anchor_window_s",
        span.time.as_secs_f64(),
        "s",
        span.intervals(),
    );
    Ok(())
}

impl Span {
    fn since(begin: Instant, flash: &[Instant]) -> Self {
        let mut busy = flash.iter().filter(|write| **write >= begin);
        let first = busy.clone().next();
        let writes = busy.clone().count();
        let time = first.zip(busy.next_back());
        Self {
            writes,
            time: time.map_or(Duration::ZERO, |(first, last)| *last - *first),
        }
    }

    /// Whether it is as long as two of these, less what a write is late by chance.
    fn has_two_of(&self, interval: Duration) -> bool {
        self.time >= 2 * interval - interval / 20
    }

    fn intervals(&self) -> usize {
        self.writes.saturating_sub(1)
    }

    fn per_hour(&self) -> Result<f64> {
        Ok(number(self.intervals())? * 3600.0 / self.time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_from_the_intervals_of_the_busy_time() -> Result<()> {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let interval = Duration::from_secs(600);
        let span = Span::since(at(100), &[at(0), at(200), at(800)]);
        assert!(!span.has_two_of(interval));
        // One more than there are checkpoints: it counts.
        let span = Span::since(at(100), &[at(0), at(200), at(800), at(900), at(1400)]);
        assert!(span.has_two_of(interval));
        assert_eq!((span.intervals(), span.per_hour()?), (3, 9.0));
        assert!(!Span::since(at(0), &[]).has_two_of(interval));
        Ok(())
    }
}
