//! The part "memory": what all that run take of the machine's memory, shared pages shared out.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::fleet::Fleet;
use super::host::BenchHost;
use super::load::number;
use super::report::Report;
use super::samples::Samples;

/// Reads the proportional set size of every process, in turns.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    ours: &Fleet,
    peers: &Fleet,
    rounds: u32,
) -> Result<()> {
    let mut own = Samples::default();
    let mut with_manager = Samples::default();
    let mut others = Samples::default();
    for _ in 0..rounds {
        let mean = mean_pss(&ours.processes)?;
        let manager = pss(Pid::from_raw(i32::try_from(host.manager())?))?;
        own.add(mean);
        with_manager.add(mean + manager / number(ours.count())?);
        others.add(mean_pss(&peers.processes)?);
    }
    let (peer, n) = (others.median()?, ours.count());
    report.beside("pss_per_vrot_kib", own.median()?, peer, "KiB", n);
    report.beside(
        "pss_per_vrot_with_manager_kib",
        with_manager.median()?,
        peer,
        "KiB",
        n,
    );
    Ok(())
}

fn mean_pss(processes: &[Pid]) -> Result<f64> {
    let mut sum = 0.0;
    for process in processes {
        sum += pss(*process)?;
    }
    Ok(sum / number(processes.len())?)
}

/// `Pss` of `/proc/PID/smaps_rollup` (proc_pid_smaps(5)), in KiB.
fn pss(process: Pid) -> Result<f64> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    read_pss(&text).with_context(|| format!("{path} has no Pss"))
}

fn read_pss(text: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_size_is_found_among_the_others() {
        let text = "55e0-7fff ---p 00000000 00:00 0    [rollup]\n\
             Rss:                7412 kB\nPss:                1234 kB\nPss_Dirty:     1000 kB\n";
        assert_eq!(read_pss(text), Some(1234.0));
        assert_eq!(read_pss("Rss: 1 kB"), None);
    }

    #[test]
    fn this_process_has_a_size() -> Result<()> {
        assert!(pss(Pid::this())? > 0.0);
        Ok(())
    }
}
