//! Programs, users, unit files, libvirt and AppArmor.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cert_chain::Digest32;

use super::Examination;
use super::finding::{Check, Finding};
use super::system::{Seen, System};

const UNIT: &str = "vtpm-managerd.service";
/// As the package has them.
const PACKAGED_UNIT: &str = include_str!("../../packaging/vrot-host/vtpm-managerd.service");
const PACKAGED_RULE: &str = include_str!("../../packaging/vrot-host/apparmor-libvirt-qemu");

const UNIT_PATH: &str = "/usr/lib/systemd/system/vtpm-managerd.service";
const OWN_UNIT_PATH: &str = "/etc/systemd/system/vtpm-managerd.service";
const OWN_UNIT_FOLDER: &str = "/etc/systemd/system/vtpm-managerd.service.d";

pub(crate) const MANAGER_USER: &str = "vtpm-manager";
/// Who may get as far as the API, and who may use the TPM.
const GROUPS: [&str; 2] = ["vrot", "tss"];

const ABSTRACTION: &str = "/etc/apparmor.d/abstractions/libvirt-qemu";
const RULE: &str = "/etc/apparmor.d/abstractions/libvirt-qemu.d/vrot";
const HOOK: &str = "/etc/libvirt/hooks/qemu.d/vrot";
const LIBVIRT: [&str; 2] = ["/usr/sbin/libvirtd", "/usr/sbin/virtqemud"];

pub(crate) fn check(examined: &Examination<'_>, findings: &mut Vec<Finding>) {
    programs(examined, &mut Check::new("programs", findings));
    users(examined.system, &mut Check::new("users", findings));
    unit(examined.system, &mut Check::new("unit", findings));
    let has_libvirt = LIBVIRT.iter().any(|path| examined.system.exists(path));
    if has_libvirt {
        libvirt(examined.system, &mut Check::new("libvirt", findings));
        apparmor(examined.system, &mut Check::new("apparmor", findings));
    }
}

fn programs(examined: &Examination<'_>, check: &mut Check<'_>) {
    let manager = &examined.programs.manager;
    let shown = manager.display();
    let said = System::answer_of_file(manager, &["--version"]);
    match said.as_deref().and_then(|said| said.rsplit(' ').next()) {
        None => return, // The check of the configuration says why.
        Some(version) if version != examined.version => check.warning(
            format!(
                "`{shown}` has version {version}, this program {}",
                examined.version
            ),
            "install vrot-host and vrot-operator of one version",
        ),
        Some(version) => check.ok(format!("version {version}")),
    }
    let Ok(host) = &examined.manager.host else {
        return;
    };
    let Ok(installed) = bounded_file::read_bounded(manager, MAX_PROGRAM) else {
        return;
    };
    if Digest32::of(&installed) != host.manager_digest {
        check.warning(
            format!("the manager that runs is another program than `{shown}`"),
            "`systemctl restart vtpm-managerd`: running vRoTs go on meanwhile",
        );
    }
}

const MAX_PROGRAM: usize = 512 * 1024 * 1024;

fn users(system: &System, check: &mut Check<'_>) {
    let mut missing: Vec<String> = Vec::new();
    if system.user(MANAGER_USER).is_none() {
        missing.push(format!("user {MANAGER_USER}"));
    }
    let groups = GROUPS.iter().filter(|name| system.group(name).is_none());
    missing.extend(groups.map(|name| format!("group {name}")));
    if missing.is_empty() {
        check.ok(format!("{MANAGER_USER}, {}", GROUPS.join(", ")));
    } else {
        check.failed(
            format!("there is no {}", missing.join(", no ")),
            "`systemd-sysusers vtpm-manager.conf`; the group tss comes with the package tpm-udev",
        );
    }
}

fn unit(system: &System, check: &mut Check<'_>) {
    let own = system.exists(OWN_UNIT_PATH);
    match system.text(if own { OWN_UNIT_PATH } else { UNIT_PATH }) {
        Seen::Absent => check.warning(
            format!("there is no {UNIT}: the manager is not started with the host"),
            "install the package vrot-host",
        ),
        Seen::Not(why) => check.unseen(format!("{UNIT} cannot be read: {why}"), "look as root"),
        Seen::There(text) if text != PACKAGED_UNIT => check.warning(
            format!("{UNIT} is not as it was packaged: what confines the manager may be missing"),
            format!("put changes into {OWN_UNIT_FOLDER}/, and install the package again"),
        ),
        Seen::There(_) => check.ok(format!("{UNIT} is as it was packaged")),
    }
    if let Seen::There(names) = system.names(OWN_UNIT_FOLDER) {
        let changes: Vec<&str> = (names.iter().map(String::as_str))
            .filter(|name| name.ends_with(".conf"))
            .collect();
        if !changes.is_empty() {
            check.warning(
                format!("changed by {}", changes.join(", ")),
                format!("`systemctl cat {UNIT}` shows what holds: nothing that confines it should be off"),
            );
        }
    }
    match system.answer_of("systemctl", &["is-enabled", UNIT]) {
        Some(_) => {}
        None if !system.exists("/run/systemd/system") => {}
        None => check.warning(
            format!("{UNIT} is not enabled: no VM has its vRoT after a restart of the host"),
            format!("`systemctl enable {UNIT}`"),
        ),
    }
}

fn libvirt(system: &System, check: &mut Check<'_>) {
    match system.metadata(HOOK) {
        Seen::There(hook) if hook.permissions().mode() & 0o111 != 0 => {
            check.ok(format!("`{HOOK}` starts and stops vRoTs of domains"));
        }
        Seen::There(_) => check.failed(
            format!("`{HOOK}` is not executable, so libvirt passes it over"),
            format!("`chmod 755 {HOOK}` and `systemctl restart libvirtd` (or virtqemud)"),
        ),
        Seen::Absent => check.warning(
            format!("libvirt is here, and `{HOOK}` is not: domains do not start their vRoTs"),
            "install the package vrot-host again, or start vRoTs by a hook of your own",
        ),
        Seen::Not(why) => check.unseen(format!("`{HOOK}`: {why}"), "look as root"),
    }
}

fn apparmor(system: &System, check: &mut Check<'_>) {
    let enabled = system.text("/sys/module/apparmor/parameters/enabled");
    let is_on = matches!(enabled, Seen::There(text) if text.trim() == "Y");
    if !is_on || !system.exists(ABSTRACTION) {
        check.ok("no profile of AppArmor confines libvirt's QEMU");
        return;
    }
    let reload = "`systemctl reload apparmor`, and start the VM again";
    match system.text(RULE) {
        Seen::There(text) if text == PACKAGED_RULE => {
            let abstraction = system.text(ABSTRACTION);
            let folder = Path::new(RULE).parent().and_then(Path::file_name);
            let folder = folder.map(|name| name.to_string_lossy().into_owned());
            let is_included = matches!((&abstraction, folder), (Seen::There(text), Some(folder))
                if text.contains(&folder));
            match abstraction {
                Seen::There(_) if !is_included => check.failed(
                    format!(
                        "`{ABSTRACTION}` does not include `{RULE}`: QEMU is kept from its vRoT"
                    ),
                    format!(
                        "add `include if exists <abstractions/libvirt-qemu.d>` to it, {reload}"
                    ),
                ),
                _ => check.ok(format!("`{RULE}` lets libvirt's QEMU reach its vRoT")),
            }
        }
        Seen::There(_) => check.warning(
            format!("`{RULE}` is not as it was packaged"),
            "put additions into files beside it",
        ),
        Seen::Absent => check.failed(
            format!("AppArmor confines libvirt's QEMU, and `{RULE}` is missing: VMs do not start"),
            format!("install the package vrot-host again, {reload}"),
        ),
        Seen::Not(why) => check.unseen(format!("`{RULE}`: {why}"), "look as root"),
    }
}
