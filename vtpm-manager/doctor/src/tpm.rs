//! The physical TPM as the kernel shows it, and the host's event log.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use attestation::event_log::EventLog;
use cert_chain::{HashAlgorithm, PcrValues};
use printable::WithCauses;

use super::Examination;
use super::finding::{Check, Finding};
use super::settings::Settings;
use super::system::{Seen, System};

const KERNELS_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
const KERNELS_TPM: &str = "/sys/class/tpm/tpm0";
/// Those that approvals and quotes can be of, in the order in which the manager prefers them.
const BANKS: [(HashAlgorithm, &str); 3] = [
    (HashAlgorithm::Sha256, "pcr-sha256"),
    (HashAlgorithm::Sha384, "pcr-sha384"),
    (HashAlgorithm::Sha512, "pcr-sha512"),
];
const ACTIVATE: &str = "activate the SHA-256 bank in the firmware's setup (or `tpm2_pcrallocate sha256:all`, \
     as the TPM's owner) and restart the host";

pub(crate) fn check(examined: &Examination<'_>, settings: &Settings, findings: &mut Vec<Finding>) {
    let system = examined.system;
    let Some(device) = settings.tpm.strip_prefix("device:") else {
        Check::new("tpm", findings).warning(
            format!(
                "the manager uses {}, which is no TPM of this machine",
                settings.tpm
            ),
            "for more than a trial, write `tpm = \"device:/dev/tpmrm0\"`",
        );
        return;
    };
    tpm(system, device, &mut Check::new("tpm", findings));
    let pcrs = banks(system, settings, &mut Check::new("pcr-bank", findings));
    let said = examined.manager.host.as_ref().ok();
    // The manager holds the log against what the TPM signs, and says it of its host.
    if said.is_none_or(|host| host.event_log.unchecked.is_some()) {
        let mut check = Check::new("event-log", findings);
        event_log(system, settings, pcrs.as_ref(), &mut check);
    }
}

fn tpm(system: &System, device: &str, check: &mut Check<'_>) {
    match system.metadata(device) {
        Seen::Absent => {
            let none = !system.exists("/sys/class/tpm/tpm0");
            check.failed(
                format!("there is no `{device}`"),
                if none {
                    "the kernel sees no TPM: switch it on in the firmware's setup (it may be called \
                     PTT or fTPM there)"
                } else {
                    "the kernel has a TPM without this device: correct `tpm` in the configuration"
                },
            );
            return;
        }
        Seen::Not(why) => check.unseen(format!("`{device}`: {why}"), "look as root"),
        Seen::There(file) if !file.file_type().is_char_device() => {
            check.failed(
                format!("`{device}` is no device"),
                "correct `tpm` in the configuration",
            );
        }
        Seen::There(file) => {
            let tss = system.group("tss");
            if Some(file.gid()) == tss && file.mode() & 0o060 == 0o060 {
                check.ok(format!("`{device}`, for members of tss"));
            } else {
                check.failed(
                    format!("members of tss, and so the manager, may not use `{device}`"),
                    "install the package tpm-udev, and `udevadm trigger /dev/tpmrm0`",
                );
            }
        }
    }
    match system.text(format!("{KERNELS_TPM}/tpm_version_major")) {
        Seen::There(version) if version.trim() != "2" => check.failed(
            format!("it is a TPM {}", version.trim()),
            "a TPM 2.0 is needed: some machines have firmware that makes theirs one",
        ),
        _ => {}
    }
}

/// Returns the PCRs of the bank that the manager uses.
fn banks(system: &System, settings: &Settings, check: &mut Check<'_>) -> Option<PcrValues> {
    let names = match system.names(KERNELS_TPM) {
        Seen::There(names) if names.iter().any(|name| name.starts_with("pcr-")) => names,
        _ => {
            check.unseen("the kernel does not show PCRs", "Linux 5.12 and later do");
            return None;
        }
    };
    let mut unextended = Vec::new();
    for (bank, folder) in BANKS {
        if !names.iter().any(|name| name == folder) {
            continue;
        }
        let Some(pcrs) = pcrs(system, bank, folder) else {
            check.unseen(format!("the {bank} bank cannot be read"), "look as root");
            return None;
        };
        let holds = |pcr: &u8| {
            pcrs.get(*pcr)
                .is_some_and(|value| value.as_bytes().iter().any(|byte| *byte != 0))
        };
        if settings.policy_pcrs.iter().any(holds) {
            check.ok(format!("the boot was measured into the {bank} bank"));
            return Some(pcrs);
        }
        unextended.push(bank.to_string());
    }
    if unextended.is_empty() {
        check.failed("the TPM has no SHA-256, SHA-384 or SHA-512 bank", ACTIVATE);
    } else {
        check.failed(
            format!(
                "the firmware measured nothing into the {} bank",
                unextended.join(", ")
            ),
            ACTIVATE,
        );
    }
    None
}

fn pcrs(system: &System, bank: HashAlgorithm, folder: &str) -> Option<PcrValues> {
    let mut values = Vec::new();
    for pcr in 0..24u8 {
        match system.text(format!("{KERNELS_TPM}/{folder}/{pcr}")) {
            Seen::There(value) => values.push((pcr, value.trim().to_ascii_lowercase())),
            _ => return None,
        }
    }
    PcrValues::from_hex(
        bank,
        values.iter().map(|(pcr, value)| (*pcr, value.as_str())),
    )
    .ok()
}

fn event_log(
    system: &System,
    settings: &Settings,
    pcrs: Option<&PcrValues>,
    check: &mut Check<'_>,
) {
    let path = settings.event_log.display();
    let (log, path) = match system.read(&settings.event_log) {
        Seen::There(log) => (log, path.to_string()),
        // The unit makes its copy when it starts the manager.
        Seen::Absent => match system.read(KERNELS_LOG) {
            Seen::There(log) => (log, KERNELS_LOG.to_owned()),
            Seen::Absent => {
                check.failed(
                    format!("there is neither `{path}` nor `{KERNELS_LOG}`: devices refuse every VM"),
                    "let the firmware hand its log over: switch measured boot on in its setup, boot by \
                     UEFI, and mount securityfs",
                );
                return;
            }
            Seen::Not(why) => {
                check.unseen(format!("`{KERNELS_LOG}`: {why}"), "look as root");
                return;
            }
        },
        Seen::Not(why) => {
            check.unseen(
                format!("`{path}`: {why}"),
                "look as root, or as a member of tss",
            );
            return;
        }
    };
    let replay = match EventLog::parse(&log) {
        Ok(log) => log.replay(),
        Err(error) => {
            check.failed(
                format!("`{path}` is no event log: {}", WithCauses(&error)),
                "copy the kernel's log as the packaged unit does, in binary mode and whole",
            );
            return;
        }
    };
    let Some(pcrs) = pcrs else {
        check.unseen(
            format!("`{path}` can be read; there are no PCRs to hold it against"),
            "look again once the check pcr-bank is well",
        );
        return;
    };
    let quoted = pcrs
        .iter()
        .filter(|(pcr, _)| settings.quoted_pcrs.contains(pcr));
    let judged = replay
        .bank(pcrs.bank())
        .map(|bank| bank.unaccounted(quoted));
    match judged {
        Some(Ok(others)) if others.is_empty() => {
            check.ok(format!("`{path}` accounts for the quoted PCRs"));
        }
        Some(Ok(others)) => {
            let others: Vec<String> = others.iter().map(u8::to_string).collect();
            check.failed(
                format!("`{path}` does not account for PCR {}", others.join(", ")),
                "if it is an earlier boot's, `systemctl restart vtpm-managerd` copies it anew; PCRs that are \
                 extended after the boot are left out of `quoted_pcrs`",
            );
        }
        Some(Err(error)) => check.failed(
            format!("`{path}`: {}", WithCauses(&error)),
            "choose another `pcr_bank`",
        ),
        None => check.failed(
            format!("`{path}` has no values of the {} bank", pcrs.bank()),
            "choose a `pcr_bank` that the firmware logs",
        ),
    }
}
