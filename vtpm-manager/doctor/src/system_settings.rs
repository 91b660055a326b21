//! What of the machine's settings lets secrets get to a disk.

use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::Examination;
use super::finding::{Check, Finding};
use super::system::{Seen, System};

pub(crate) fn check(examined: &Examination<'_>, findings: &mut Vec<Finding>) {
    swap(examined.system, &mut Check::new("swap", findings));
    if let Some(process) = examined.manager.process {
        core_dumps(
            examined.system,
            process,
            &mut Check::new("core-dumps", findings),
        );
    }
}

/// The manager and its backends keep their keys in locked memory; the guests' memory, and what passes
/// through buffers, is not.
fn swap(system: &System, check: &mut Check<'_>) {
    let Seen::There(swaps) = system.text("/proc/swaps") else {
        check.unseen("whether there is swap", "mount /proc");
        return;
    };
    let open: Vec<&str> = (swaps.lines().skip(1))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|device| !stays_secret(system, device))
        .collect();
    if open.is_empty() {
        check.ok("nothing is swapped to a disk in the clear");
    } else {
        check.warning(
            format!("{} is not encrypted: memory of guests gets there, and what passes through buffers", open.join(", ")),
            "encrypt it with a key that is random at each start (crypttab(5), `swap`), or `swapoff` it",
        );
    }
}

/// Compressed memory, or a device of dm-crypt.
fn stays_secret(system: &System, device: &str) -> bool {
    let real = std::fs::canonicalize(system.path(device)).unwrap_or_else(|_| device.into());
    let Some(name) = real
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
    else {
        return false;
    };
    let uuid = system.text(format!("/sys/block/{name}/dm/uuid"));
    name.starts_with("zram") || matches!(uuid, Seen::There(uuid) if uuid.starts_with("CRYPT-"))
}

fn core_dumps(system: &System, process: i32, check: &mut Check<'_>) {
    let Seen::There(limits) = system.text(format!("/proc/{process}/limits")) else {
        check.unseen(
            "whether a core of the manager would be written",
            "look as root",
        );
        return;
    };
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    // The first is the limit that holds, the second the one up to which it can be raised (proc_pid_limits(5)).
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("0") => check.ok("none of the manager is written"),
        _ => check.warning(
            "a core of the manager can be written, with keys in it",
            "start it by its packaged unit (`LimitCORE=0`), or with `ulimit -c 0`",
        ),
    }
}

/// The process that listens at a socket, if it lets this one connect.
pub fn listener(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    (peer.pid() > 0).then(|| peer.pid())
}
