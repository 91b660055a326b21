//! What processes have used of the processors so far.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// What this process and its threads have used.
pub(super) fn of_this_process() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let mut spent = Duration::ZERO;
    for time in [usage.user_time(), usage.system_time()] {
        spent += Duration::from_secs(u64::try_from(time.tv_sec())?)
            + Duration::from_micros(u64::try_from(time.tv_usec())?);
    }
    Ok(spent)
}

/// The same of another process, in the kernel's clock ticks (proc_pid_stat(5), `utime` and `stime`).
pub(super) fn of_process(process: Pid) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let spent = ticks(&stat).with_context(|| format!("{path}: {stat}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the length of a clock tick")?;
    Ok(Duration::from_secs(spent) / u32::try_from(per_second)?)
}

/// The name, which is the second field, may have spaces and parentheses in it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

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
