//! `vtpmctl libvirt-sync`: vRoTs whose domains are gone.
//!
//! libvirt tells nobody that a domain was undefined, so its domains are held against what the hook noted.
//! A deleted vRoT never comes back: only what was made for a domain is deleted, only once the domain has
//! been unknown for a while, and nothing at all when libvirt does not answer.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use api_types::wire::VrotView;
use cert_chain::VmId;
use serde::Serialize;

use crate::arguments::SyncArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::launch;
use crate::output::{Output, Table};

use super::config::Config;
use super::error::LibvirtError;
use super::notes::Note;

/// What becomes of one vRoT.
#[derive(Debug, Serialize)]
struct Line {
    vm: VmId,
    action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Action {
    /// Its domain is there.
    Kept,
    /// Its domain is gone, and has not been for long enough.
    Waits,
    /// Its domain is gone, and the configuration has it kept.
    KeptByConfiguration,
    /// Its domain is gone, and it runs all the same.
    Runs,
    /// Deleted for good.
    Deleted,
    /// Somebody else deleted it.
    Gone,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Waits => "kept: its domain is gone, but not for long enough",
            Self::KeptByConfiguration => "kept: its domain is gone, `delete_undefined` is not set",
            Self::Runs => "kept: its domain is gone, but it runs",
            Self::Deleted => "deleted: its domain is gone",
            Self::Gone => "was deleted before",
        }
    }
}

/// Looks for them.
pub(super) fn run(
    arguments: &SyncArguments,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let config = Config::read(&arguments.config.config)?;
    let notes = Note::all(&config.notes)?;
    let mut lines = Vec::new();
    if !notes.is_empty() {
        let known = domains(&arguments.connect)?;
        let now = seconds();
        for note in notes {
            let vrot = launch::find(client, note.vm)?.filter(|vrot| vrot.vrot == note.vrot);
            let is_known = known.contains(&note.vm);
            let action = decide(&config, &note, vrot.as_ref(), is_known, now);
            lines.push(Line {
                vm: note.vm,
                action,
            });
            if !arguments.dry_run {
                carry_out(action, note, &config, client, now)?;
            }
        }
    }
    output.result(&lines, || table(&lines, arguments.dry_run))
}

fn decide(
    config: &Config,
    note: &Note,
    vrot: Option<&VrotView>,
    is_known: bool,
    now: u64,
) -> Action {
    let Some(vrot) = vrot else {
        return Action::Gone;
    };
    if is_known {
        return Action::Kept;
    }
    if launch::is_up(vrot) {
        return Action::Runs;
    }
    if !config.delete_undefined {
        return Action::KeptByConfiguration;
    }
    // A clock that was put back makes it wait longer.
    let since = note.unknown_since.unwrap_or(now);
    match now.saturating_sub(since) >= config.undefined_for_s {
        true => Action::Deleted,
        false => Action::Waits,
    }
}

fn carry_out(
    action: Action,
    mut note: Note,
    config: &Config,
    client: &Client,
    now: u64,
) -> Result<(), CtlError> {
    let unknown_since = match action {
        Action::Kept => None,
        _ => note.unknown_since.or(Some(now)),
    };
    match action {
        Action::Deleted | Action::Gone => {
            if action == Action::Deleted {
                launch::delete(client, note.vrot)?;
            }
            Note::remove(&config.notes, note.vm)?;
        }
        _ if unknown_since != note.unknown_since => {
            note.unknown_since = unknown_since;
            note.keep(&config.notes)?;
        }
        _ => {}
    }
    Ok(())
}

/// The domains that libvirt knows, defined or running.
fn domains(uri: &str) -> Result<BTreeSet<VmId>, LibvirtError> {
    let arguments = [
        "--quiet",
        "--readonly",
        "--connect",
        uri,
        "list",
        "--all",
        "--uuid",
    ];
    let refused = |said: String| LibvirtError::Domains {
        command: format!("virsh {}", arguments.join(" ")),
        said,
    };
    let output = Command::new("virsh").args(arguments).output();
    let output = output.map_err(|error| refused(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(refused(said.trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            line.parse()
                .map_err(|_| refused(format!("it lists `{line}`")))
        })
        .collect()
}

fn seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

fn table(lines: &[Line], dry_run: bool) -> String {
    if lines.is_empty() {
        return "no vRoT was made for a domain".to_owned();
    }
    let mut table = Table::default();
    table.row(["VM", if dry_run { "WOULD BE" } else { "VROT" }]);
    for line in lines {
        table.row([line.vm.to_string().as_str(), line.action.name()]);
    }
    table.render()
}
