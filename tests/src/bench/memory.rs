//! The part "memory": what all that run take of the machine's memory, shared pages shared out.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::fleet::Fleet;
use super::host::BenchHost;
use super::launch::{launch, remove};
use super::load::number;
use super::report::Report;
use super::samples::Samples;

/// What every guest has done by then: its firmware has started the TPM, and it has defined an NV
/// index and written it so many times. The history of ours and of the peers is the same.
const WRITES: usize = 5;

/// Reads the proportional set size of every process, in turns. A vRoT costs its backend and its
/// share of all that runs for vRoTs: the manager, and what is below it.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    ours: &mut Fleet,
    peers: &mut Fleet,
    rounds: u32,
) -> Result<()> {
    // A manager that took all its backends over starts the process that forks them with the next
    // launch. It belongs to the cost.
    remove(host.api(), launch(host.api())?)?;
    for fleet in [&mut *ours, &mut *peers] {
        for vmm in &mut fleet.vmms {
            for _ in 0..WRITES {
                vmm.must_write()?;
            }
        }
    }
    let manager = Pid::from_raw(i32::try_from(host.manager())?);
    let n = ours.count();
    let (mut backends, mut all, mut others) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let mut processes = below(manager)?;
        processes.insert(manager);
        processes.extend(&ours.processes);
        all.add(sum_of_pss(&processes)? / number(n)?);
        backends.add(sum_of_pss(&ours.processes)? / number(n)?);
        others.add(sum_of_pss(&peers.processes)? / number(peers.count())?);
    }
    let peer = others.median()?;
    report.beside("pss_per_vrot_kib", all.median()?, peer, "KiB", n);
    report.spread(&all)?;
    report.beside("pss_per_backend_kib", backends.median()?, peer, "KiB", n);
    report.spread(&backends)
}

/// All processes that descend from this one.
fn below(ancestor: Pid) -> Result<BTreeSet<Pid>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile has no status.
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        if let Some(parent) = read_line(&status, "PPid:").and_then(|value| value.parse().ok()) {
            parents.push((Pid::from_raw(process), Pid::from_raw(parent)));
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let before = found.len();
        for (process, parent) in &parents {
            if *parent == ancestor || found.contains(parent) {
                found.insert(*process);
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

fn sum_of_pss<'a>(processes: impl IntoIterator<Item = &'a Pid>) -> Result<f64> {
    let mut sum = 0.0;
    for process in processes {
        sum += pss(*process)?;
    }
    Ok(sum)
}

/// `Pss` of `/proc/PID/smaps_rollup` (proc_pid_smaps(5)), in KiB.
fn pss(process: Pid) -> Result<f64> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    read_pss(&text).with_context(|| format!("{path} has no Pss"))
}

fn read_pss(text: &str) -> Option<f64> {
    let value = read_line(text, "Pss:")?.strip_suffix(" kB")?;
    value.trim().parse().ok()
}

fn read_line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

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

    #[test]
    fn children_and_theirs_are_below_a_process() -> Result<()> {
        // The shell waits for a child of its own.
        let mut shell = Command::new("sh").args(["-c", "sleep 60; true"]).spawn()?;
        let process = Pid::from_raw(i32::try_from(shell.id())?);
        let child = loop {
            if let Some(child) = below(process)?.first() {
                break *child;
            }
        };
        let ours = below(Pid::this())?;
        assert!(ours.contains(&process) && ours.contains(&child));
        assert!(!ours.contains(&Pid::this()));
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
        shell.wait()?;
        Ok(())
    }
}
