//! The part "restart": the manager is killed while all guests write.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Arguments;
use super::api::Metrics;
use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::{number, under_load};
use super::report::Report;
use super::samples::Samples;

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
    let mut adoptions = Samples::default();
    let mut recoveries = Samples::default();
    let (mut failed, mut sent) = (0, 0);
    for _ in 0..arguments.rounds {
        let ((adopted, durable), progress) =
            under_load(&mut ours.vmms, arguments.think(), |progress| {
                thread::sleep(AROUND);
                let begin = Instant::now();
                host.crash()?;
                let mut wait = |what: &str, is: &dyn Fn(&Metrics) -> bool| {
                    // A manager that does not answer yet has adopted nobody.
                    while !host.api().metrics().is_ok_and(|metrics| is(&metrics)) {
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
                Ok((adopted, durable))
            })?;
        adoptions.add(adopted.as_secs_f64());
        recoveries.add(durable.as_secs_f64());
        failed += progress.failed();
        sent += progress.failed() + progress.succeeded();
    }
    let n = adoptions.count();
    report.alone("manager_restart_s", adoptions.median()?, "s", n);
    report.alone(
        "manager_restart_until_durable_s",
        recoveries.median()?,
        "s",
        n,
    );
    report.alone(
        "failed_commands",
        number(failed)?,
        "commands",
        usize::try_from(sent).context("counting commands")?,
    );
    Ok(())
}
