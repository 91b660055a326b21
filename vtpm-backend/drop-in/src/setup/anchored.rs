//! Setting up where this host has its TPMs anchored: the manager makes the vRoT, with keys and
//! certificates of its own, and the folder gets a file that names it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use vrot_handover::message::Lock;
use vrot_handover::set_up::{self, Order, set_up};

use super::banks::{self, Bank};
use super::command_line::{Existing, Options};
use super::configuration::Configuration;
use super::report::{Report, now};
use crate::{anchored, identity};

const ANCHORED: &str = "where this host has its TPMs anchored";
/// What a vRoT's RSA keys have.
const RSA_BITS: u64 = 2048;
/// Those of libtpms, which a vRoT all has.
const BANKS: [Bank; 4] = [Bank(0x0004), Bank(0x000b), Bank(0x000c), Bank(0x000d)];

/// Has the manager make a vRoT.
pub(super) fn make(options: &Options, report: &Report, manager: &Path) -> Result<()> {
    let configuration = Configuration::read(options.config.as_deref())?;
    let folder = anchored::folder(options.state()?)?;
    let existing = match options.existing()? {
        Existing::Refuse => set_up::Existing::Refuse,
        Existing::Keep => set_up::Existing::Keep,
        Existing::Replace => set_up::Existing::Replace,
        Existing::Change => {
            ensure!(
                anchored::has_vrot(&folder),
                "{} has no vRoT to reconfigure",
                folder.display()
            );
            let wanted = options.banks(&configuration);
            let lock = options.lock()?;
            return wanted.map_or(Ok(()), |wanted| {
                change_banks(&wanted, manager, &folder, lock, report)
            });
        }
    };
    ensure!(
        options.makes_endorsement_keys(),
        "a TPM without keys is wanted, as for a VM that arrives from another host (--createek is \
         missing): {ANCHORED}, a TPM is sealed to the physical one of its host and does not arrive"
    );
    ensure!(
        options.rsa_key_size(&configuration)? == RSA_BITS,
        "RSA keys of other lengths than {RSA_BITS} bits are not offered {ANCHORED}"
    );
    for (is_wanted, option) in [
        (options.allow_signing, "--allow-signing"),
        (options.create_spk, "--create-spk"),
        (
            options.write_ek_cert_files.is_some(),
            "--write-ek-cert-files (`vtpmctl identity` shows certificates)",
        ),
    ] {
        ensure!(!is_wanted, "{option} is not offered {ANCHORED}");
    }
    let vmid = options.vmid.as_deref().map(set_up::vm_of);
    let (name, vm) = vmid.unwrap_or_default();
    let order = Order {
        existing,
        vm,
        name,
        lock: options.lock()?,
    };
    // Of the configuration's banks nobody thought of a vRoT.
    let banks = options.banks_said();
    if let Some(wanted) = banks {
        banks::choose(wanted, &BANKS)?;
    }
    let (user, group) = identity::current();
    report.say(&format!(
        "Starting vTPM manufacturing as {user}:{group} @ {}",
        now()
    ));
    let made = set_up(manager, &folder, &order);
    let made = made.with_context(|| format!("no vRoT was set up for {}", folder.display()))?;
    let (vrot, vm) = (made.vrot, made.vm);
    if !made.is_new {
        report.say(&format!(
            "Not overwriting existing state file: the folder has vRoT {vrot} of VM {vm}."
        ));
        return Ok(());
    }
    report.say(&format!(
        "The manager of this host made vRoT {vrot} for VM {vm}, sealed to the physical TPM and \
         certified by the host."
    ));
    if let Some(wanted) = banks {
        change_banks(wanted, manager, &folder, order.lock, report)?;
    }
    report.say("Successfully authored TPM state.");
    report.say(&format!("Ending vTPM manufacturing @ {}", now()));
    Ok(())
}

/// `--pcr-banks`, which libvirt gives with `--reconfigure` at each start of a domain that names banks.
fn change_banks(
    wanted: &str,
    manager: &Path,
    folder: &Path,
    lock: Option<Lock>,
    report: &Report,
) -> Result<()> {
    let active = banks::choose(wanted, &BANKS)?;
    let identifiers: Vec<u16> = active.iter().map(|bank| bank.0).collect();
    let activated = set_up::activate_banks(manager, folder, lock, &identifiers);
    activated.with_context(|| format!("the PCR banks of {} stay as they are", folder.display()))?;
    report.say(&format!(
        "Successfully activated PCR banks {} among {}.",
        banks::names(&active),
        banks::names(&BANKS)
    ));
    Ok(())
}
