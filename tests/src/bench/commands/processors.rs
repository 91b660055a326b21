//! Which processor runs what, and programs that want all of it.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Where the VMM runs, and where the TPM.
const VMM: usize = 0;
const TPM: usize = 1;

/// A thread that runs on one processor until this goes away.
pub(super) struct Pinned {
    before: CpuSet,
}

/// Keeps the calling thread, which is the VMM, on its processor.
pub(super) fn pin_this_thread() -> Result<Pinned> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    sched_setaffinity(this, &only(VMM)?).context("two processors are needed")?;
    Ok(Pinned { before })
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It is the set that was there before.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// Keeps all threads of a TPM's process on its processor.
pub(super) fn pin(process: Pid) -> Result<()> {
    for thread in threads(process)? {
        sched_setaffinity(thread, &only(TPM)?).context("two processors are needed")?;
    }
    Ok(())
}

fn threads(process: Pid) -> Result<Vec<Pid>> {
    let folder = format!("/proc/{process}/task");
    let mut threads = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        let name = entry?.file_name();
        threads.push(Pid::from_raw(name.to_string_lossy().parse()?));
    }
    ensure!(!threads.is_empty(), "{folder} is empty");
    Ok(threads)
}

fn only(processor: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(set)
}

/// A program on each of the two processors that never waits.
pub(super) struct Hogs(Vec<Child>);

impl Hogs {
    /// Starts them.
    pub(super) fn start() -> Result<Self> {
        let mut hogs = Self(Vec::new());
        for processor in [VMM, TPM] {
            let hog = Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
                .context("starting a program that never waits")?;
            let process = Pid::from_raw(i32::try_from(hog.id())?);
            hogs.0.push(hog);
            sched_setaffinity(process, &only(processor)?)?;
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}
