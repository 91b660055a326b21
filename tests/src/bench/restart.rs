//! The part "restart": the manager is killed while all guests write.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
    rounds: u32,
) -> Result<()> {
    let count = number(ours.count())?;
    let mut times = Samples::default();
    let (mut failed, mut sent) = (0, 0);
    for _ in 0..rounds {
        let (time, progress) = under_load(&mut ours.vmms, |progress| {
            thread::sleep(AROUND);
            let begin = Instant::now();
            host.crash()?;
            while !all_adopted(host, count) {
                host.must_run()?;
                ensure!(
                    begin.elapsed() < PATIENCE,
                    "after {} s not all vRoTs were adopted",
                    PATIENCE.as_secs()
                );
                thread::sleep(PAUSE);
            }
            let time = begin.elapsed();
            // The new manager serves: guests are answered again.
            let answered = progress.succeeded();
            thread::sleep(AROUND);
            ensure!(
                progress.succeeded() > answered,
                "no guest was answered after the restart"
            );
            Ok(time)
        })?;
        times.add(time.as_secs_f64());
        failed += progress.failed();
        sent += progress.failed() + progress.succeeded();
    }
    report.alone("manager_restart_s", times.median()?, "s", times.count());
    report.alone(
        "failed_commands",
        number(failed)?,
        "commands",
        usize::try_from(sent).context("counting commands")?,
    );
    Ok(())
}

/// A manager that does not answer yet has adopted nobody.
fn all_adopted(host: &BenchHost, count: f64) -> bool {
    host.api().metrics().is_ok_and(|metrics| {
        metrics.find("vrot_vrots{state=\"running\"}") == Some(count)
            && metrics.find("vrot_attached") == Some(count)
    })
}
