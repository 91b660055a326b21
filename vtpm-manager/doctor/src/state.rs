//! The state folder and its disk.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::SystemTime;

use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, User, geteuid};

use super::Examination;
use super::finding::{Check, Finding};
use super::installation::MANAGER_USER;
use super::settings::Settings;
use super::system::{Seen, System, is_root};

const MIB: u64 = 1024 * 1024;
/// A store of a thousand vRoTs and a part of the audit log.
const LITTLE: u64 = 1024 * MIB;
const NEARLY_NONE: u64 = 64 * MIB;
/// Files that the manager makes: parts of the log, locks.
const FEW_FILES: u64 = 1000;

pub(crate) fn check(examined: &Examination<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let system = examined.system;
    folder(system, settings, &mut Check::new("state-folder", findings));
    disk(system, settings, &mut Check::new("disk", findings));
    clock(system, settings, &mut Check::new("clock", findings));
}

fn folder(system: &System, settings: &Settings, check: &mut Check<'_>) {
    let path = settings.state_dir.display();
    match system.metadata(&settings.state_dir) {
        Seen::Absent => check.warning(
            format!("there is no `{path}`"),
            "the unit makes it when the manager is started",
        ),
        Seen::Not(why) => check.unseen(format!("`{path}`: {why}"), "look as root"),
        Seen::There(folder) => {
            let mode = folder.permissions().mode() & 0o7777;
            let owner = User::from_uid(Uid::from_raw(folder.uid())).ok().flatten();
            let owner = owner.map_or_else(|| folder.uid().to_string(), |user| user.name);
            // Root and whoever looks may run a manager of their own.
            let managers = [Some(0), Some(geteuid().as_raw()), system.user(MANAGER_USER)];
            if !managers.contains(&Some(folder.uid())) {
                check.failed(
                    format!("`{path}` belongs to {owner}, and the manager runs as {MANAGER_USER}"),
                    format!(
                        "look who made it and what is in it; if it is the manager's own: `chown -R {MANAGER_USER}: {path}`"
                    ),
                );
            } else if mode & 0o077 == 0 {
                check.ok(format!("`{path}`, of {owner} alone"));
            } else {
                check.failed(
                    format!("others than {owner} get into `{path}` (mode {mode:o})"),
                    format!("`chmod 700 {path}`"),
                );
            }
        }
    }
}

fn disk(system: &System, settings: &Settings, check: &mut Check<'_>) {
    let path = system.path(&settings.state_dir);
    let shown = settings.state_dir.display();
    let Ok(disk) = statvfs(&path) else {
        check.unseen(
            format!("how much room there is in `{shown}`"),
            "look as root",
        );
        return;
    };
    let (free, files) = (
        disk.blocks_available() * disk.fragment_size(),
        disk.files_available(),
    );
    let mib = free / MIB;
    let remedy = format!(
        "make room on the disk of `{shown}`; old parts of the audit log can be archived (`audit_begins_after`)"
    );
    if free < NEARLY_NONE {
        check.failed(
            format!("{mib} MiB are free: soon nothing becomes durable"),
            remedy,
        );
    } else if free < LITTLE {
        check.warning(format!("{mib} MiB are free"), remedy);
    } else if disk.files() > 0 && files < FEW_FILES {
        check.warning(format!("{files} files can be made"), remedy);
    } else {
        check.ok(format!("{mib} MiB are free"));
    }
}

fn clock(system: &System, settings: &Settings, check: &mut Check<'_>) {
    // What the manager wrote last cannot be younger than now.
    let names = match system.names(&settings.state_dir) {
        Seen::There(names) => names,
        _ => Vec::new(),
    };
    let written =
        names.iter().filter_map(
            |name| match system.metadata(settings.state_dir.join(name)) {
                Seen::There(file) => file.modified().ok(),
                _ => None,
            },
        );
    let ahead = written
        .max()
        .and_then(|last| last.duration_since(SystemTime::now()).ok());
    let set = "set the clock (`timedatectl`): certificates are judged by it";
    if let Some(ahead) = ahead.filter(|ahead| ahead.as_secs() > 60) {
        check.failed(
            format!(
                "the clock was put back: the manager's files are {} s ahead of it",
                ahead.as_secs()
            ),
            set,
        );
        return;
    }
    let synchronised = ["show", "--property=NTPSynchronized", "--value"];
    match system.answer_of("timedatectl", &synchronised).as_deref() {
        Some("yes") => check.ok("it is synchronised"),
        Some("no") => check.warning(
            "nothing synchronises it",
            "`timedatectl set-ntp true`, or another NTP client",
        ),
        _ if names.is_empty() && !is_root() => {
            check.unseen(
                "whether it is right",
                "look as root, with `timedatectl` installed",
            );
        }
        _ => check.unseen(
            "whether anything synchronises it",
            "`timedatectl` would say",
        ),
    }
}
