//! The part "restart": the manager is killed while all guests write.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Arguments;
use super::api::Metrics;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{Habit, number, under_load};
use super::report::Report;
use super::samples::Samples;

/// When a vRoT answers at the latest, durable or not; then it says that it is degraded.
pub(super) const DURABILITY_DEADLINE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions whether the new manager is there.
const PAUSE: Duration = Duration::from_millis(5);
/// Load before the crash and after the adoption.
const AROUND: Duration = Duration::from_secs(2);

/// Kills the manager so many times, and starts it again at once; it is there when it serves all
/// vRoTs and sees all VMMs.
pub(super) fn measure(
    report: &mut Report,
    host: &mut BenchHost,
    ours: &mut Fleet,
    arguments: &Arguments,
) -> Result<()> {
    let count = number(ours.count())?;
    let mut answers = Samples::default();
    let mut adoptions = Samples::default();
    let mut recoveries = Samples::default();
    let mut times = Samples::default();
    let mut failed = 0;
    let mut degraded: f64 = 0.0;
    let habit = Habit::Living {
        think: arguments.think(),
    };
    for _ in 0..arguments.rounds {
        let ((first, adopted, durable), progress) =
            under_load(&mut ours.vmms, habit, |progress| {
                thread::sleep(AROUND);
                let begin = Instant::now();
                host.crash()?;
                let mut first = None;
                let mut wait = |what: &str, is: &dyn Fn(&Metrics) -> bool| {
                    loop {
                        // A manager that does not answer yet has adopted nobody.
                        if let Ok(metrics) = host.api().metrics() {
                            first.get_or_insert_with(|| begin.elapsed());
                            let now = metrics.find("vrot_degraded").unwrap_or_default();
                            degraded = degraded.max(now);
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
                Ok((first.unwrap_or(adopted), adopted, durable))
            })?;
        answers.add(first.as_secs_f64());
        adoptions.add(adopted.as_secs_f64());
        recoveries.add(durable.as_secs_f64());
        failed += progress.failed();
        times.extend(progress.into_times().into_values());
    }
    let n = adoptions.count();
    report.alone("manager_answers_s", answers.median()?, "s", n);
    report.spread(&answers)?;
    report.alone("manager_restart_s", adoptions.median()?, "s", n);
    report.spread(&adoptions)?;
    report.alone(
        "manager_restart_until_durable_s",
        recoveries.median()?,
        "s",
        n,
    );
    report.spread(&recoveries)?;
    let limit = arguments.late();
    let late = times.above(limit.as_secs_f64() * 1e3);
    report.alone(
        "failed_commands",
        number(failed)? + number(late)?,
        "commands refused, unanswered, or answered late",
        times.count(),
    );
    for (name, per_cent) in [("command_p99_ms", 99), ("command_max_ms", 100)] {
        report.alone(name, times.percentile(per_cent)?, "ms", times.count());
    }
    report.alone("degraded_vrots_across_restart", degraded, "vRoTs", n);
    Ok(())
}
