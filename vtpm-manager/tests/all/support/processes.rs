//! Processes of a test's host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Backends and TPM outlive the daemon; none of them outlives the test, nor one that was just being started.
pub(super) fn end_processes_of(folder: &Path) {
    let name = folder.as_os_str().as_encoded_bytes();
    for _ in 0..100 {
        let named = processes_where(|process| {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            line.windows(name.len()).any(|window| window == name)
        });
        let found = [named, processes_in(folder)].concat();
        if found.is_empty() {
            return;
        }
        for process in found {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends what is at home in a folder. What has ended meanwhile has ended.
pub(crate) fn kill_processes_in(folder: &Path) {
    for process in processes_in(folder) {
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
}

/// Backends: each is at home in the folder of its sockets.
pub(super) fn processes_in(folder: &Path) -> Vec<i32> {
    processes_where(|process| {
        fs::read_link(process.join("cwd")).is_ok_and(|home| home.starts_with(folder))
    })
}

fn processes_where(is: impl Fn(&Path) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| is(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
