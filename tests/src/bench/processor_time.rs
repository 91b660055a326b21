//! What processes have used of the processors so far.

use std::time::Duration;

use anyhow::Result;
use nix::time::ClockId;
use nix::unistd::Pid;

/// What this process and its threads have used.
pub(super) fn of_this_process() -> Result<Duration> {
    Ok(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?.into())
}

/// The same of another process.
pub(super) fn of_process(process: Pid) -> Result<Duration> {
    Ok(ClockId::pid_cpu_clock_id(process)?.now()?.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_is_seen_from_within_and_from_without() -> Result<()> {
        let before = of_this_process()?;
        let begin = Instant::now();
        while of_this_process()? < before + Duration::from_millis(30) {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "no time passes");
        }
        assert!(of_process(Pid::this())? > Duration::ZERO);
        Ok(())
    }
}
