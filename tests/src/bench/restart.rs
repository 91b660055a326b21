//! The part "restart": the manager ends while all guests write, as planned or killed, and is started
//! again at once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Arguments;
use super::api::Metrics;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{Habit, Progress, number, under_load};
use super::report::Report;
use super::samples::Samples;

/// When a vRoT answers at the latest, durable or not; then it says that it is degraded.
pub(super) const DURABILITY_DEADLINE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions whether the new manager is there.
const PAUSE: Duration = Duration::from_millis(5);
/// Load before the manager ends and after the adoption.
const AROUND: Duration = Duration::from_secs(2);

/// How the manager ends.
#[derive(Clone, Copy)]
enum End {
    /// By SIGKILL.
    Killed,
    /// By SIGTERM, as `systemctl restart` does; the next one is started when it has ended.
    Planned,
}

/// What was measured of some restarts.
#[derive(Default)]
struct Restarts {
    /// Seconds until the API answers.
    answers: Samples,
    /// Until all vRoTs are served, and all VMMs seen.
    adoptions: Samples,
    /// Until what guests were told meanwhile is durable as well.
    recoveries: Samples,
    guests: Guests,
    /// Writes of the physical TPM's flash, each restart's with those of the next manager's start.
    anchor_writes: Samples,
    /// The most vRoTs that the new manager called degraded at a time.
    degraded: f64,
}

/// What guests saw.
#[derive(Default)]
struct Guests {
    /// Milliseconds that each answer took.
    times: Samples,
    /// Commands refused, or not answered at all.
    failed: u64,
}

/// Ends the manager so many times each way.
pub(super) fn measure(
    report: &mut Report,
    host: &mut BenchHost,
    ours: &mut Fleet,
    arguments: &Arguments,
) -> Result<()> {
    let killed = restarts(host, ours, arguments, End::Killed)?;
    let n = killed.adoptions.count();
    for (name, seconds) in [
        ("manager_answers_s", &killed.answers),
        ("manager_restart_s", &killed.adoptions),
        ("manager_restart_until_durable_s", &killed.recoveries),
    ] {
        report.alone(name, seconds.median()?, "s", n);
        report.spread(seconds)?;
    }
    report_guests(report, arguments, "", &killed.guests)?;
    report.alone("degraded_vrots_across_restart", killed.degraded, "vRoTs", n);
    let writes = killed.anchor_writes.median()?;
    report.alone("restart_anchor_writes", writes, "writes", n);

    let planned = restarts(host, ours, arguments, End::Planned)?;
    let n = planned.adoptions.count();
    for (name, seconds) in [
        ("planned_restart_s", &planned.adoptions),
        ("planned_restart_until_durable_s", &planned.recoveries),
    ] {
        report.alone(name, seconds.median()?, "s", n);
        report.spread(seconds)?;
    }
    report_guests(report, arguments, "planned_restart_", &planned.guests)?;
    report.alone(
        "degraded_vrots_across_planned_restart",
        planned.degraded,
        "vRoTs",
        n,
    );
    let writes = planned.anchor_writes.median()?;
    report.alone("planned_restart_anchor_writes", writes, "writes", n);

    // What a guest waits for on this machine when nothing ends.
    let long = Duration::from_secs_f64(planned.recoveries.percentile(100)?) + 2 * AROUND;
    let mut undisturbed = Guests::default();
    for _ in 0..arguments.rounds {
        let ((), progress) = under_load(&mut ours.vmms, habit(arguments), |_| {
            thread::sleep(long);
            Ok(())
        })?;
        undisturbed.add(progress);
    }
    report_guests(report, arguments, "without_restart_", &undisturbed)
}

fn restarts(
    host: &mut BenchHost,
    ours: &mut Fleet,
    arguments: &Arguments,
    end: End,
) -> Result<Restarts> {
    let count = number(ours.count())?;
    let mut restarts = Restarts::default();
    for _ in 0..arguments.rounds {
        let before = host.tpm().traffic().flash.len();
        let ((), progress) = under_load(&mut ours.vmms, habit(arguments), |progress| {
            restart(host, count, end, progress, &mut restarts)
        })?;
        let writes = host.tpm().traffic().flash.len() - before;
        restarts.anchor_writes.add(number(writes)?);
        restarts.guests.add(progress);
    }
    Ok(restarts)
}

/// One restart, with some load before and after it.
fn restart(
    host: &mut BenchHost,
    count: f64,
    end: End,
    progress: &Progress,
    restarts: &mut Restarts,
) -> Result<()> {
    thread::sleep(AROUND);
    let begin = Instant::now();
    match end {
        End::Killed => host.crash()?,
        End::Planned => host.restart()?,
    }
    let mut first = None;
    let mut wait = |what: &str, is: &dyn Fn(&Metrics) -> bool| {
        loop {
            // A manager that does not answer yet has adopted nobody.
            if let Ok(metrics) = host.api().metrics() {
                first.get_or_insert_with(|| begin.elapsed());
                let now = metrics.find("vrot_degraded").unwrap_or_default();
                restarts.degraded = restarts.degraded.max(now);
                if is(&metrics) {
                    break;
                }
            }
            host.must_run()?;
            ensure!(
                begin.elapsed() < PATIENCE,
                "after {} s not all vRoTs were {what}",
                PATIENCE.as_secs()
            );
            thread::sleep(PAUSE);
        }
        Ok(begin.elapsed())
    };
    let adopted = wait("adopted", &|metrics| {
        metrics.find("vrot_vrots{state=\"running\"}") == Some(count)
            && metrics.find("vrot_attached") == Some(count)
    })?;
    // What guests were told meanwhile is durable as well.
    let durable = wait("durable again", &|metrics| {
        metrics.find("vrot_degraded") == Some(0.0)
    })?;
    // The new manager serves: guests are answered again.
    let answered = progress.succeeded();
    thread::sleep(AROUND);
    ensure!(
        progress.succeeded() > answered,
        "no guest was answered after the restart"
    );
    restarts.answers.add(first.unwrap_or(adopted).as_secs_f64());
    restarts.adoptions.add(adopted.as_secs_f64());
    restarts.recoveries.add(durable.as_secs_f64());
    Ok(())
}

impl Guests {
    fn add(&mut self, progress: Progress) {
        self.failed += progress.failed();
        self.times.extend(progress.into_times().into_values());
    }
}

fn report_guests(
    report: &mut Report,
    arguments: &Arguments,
    prefix: &str,
    guests: &Guests,
) -> Result<()> {
    let times = &guests.times;
    let late = times.above(arguments.late().as_secs_f64() * 1e3);
    report.alone(
        format!("{prefix}failed_commands"),
        number(guests.failed)? + number(late)?,
        "commands refused, unanswered, or answered late",
        times.count(),
    );
    for (name, per_cent) in [("command_p99_ms", 99), ("command_max_ms", 100)] {
        let name = format!("{prefix}{name}");
        report.alone(name, times.percentile(per_cent)?, "ms", times.count());
    }
    Ok(())
}

fn habit(arguments: &Arguments) -> Habit {
    Habit::Living {
        think: arguments.think(),
    }
}
