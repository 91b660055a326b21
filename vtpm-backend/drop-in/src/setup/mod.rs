//! `swtpm_setup`: makes the state of a TPM, with endorsement keys and certificates.
//!
//! The TPM runs in this process, and its state is written once, at the end: what fails leaves what was
//! there before.

mod anchored;
mod banks;
mod certificates;
mod command_line;
mod configuration;
mod create_files;
mod keys;
mod report;
mod tpm;

pub use command_line::command_line;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use program_output::console::{arguments, complain, print};
use serde_json::json;
use swtpm_state::{StateKind, StateStore, StoreOptions};

use crate::{identity, swtpm};
use certificates::Authority;
use command_line::{Existing, Options};
use configuration::Configuration;
use keys::Use;
use report::Report;
use tpm::Tpm;

/// The program.
pub fn main() -> ExitCode {
    crate::descriptors::note_what_was_given();
    let options: Options = match arguments() {
        Ok(options) => options,
        Err(end) => return end,
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("swtpm_setup: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// 10 ms apart: a TPM that is about to end may have the state.
const LOCK_RETRIES: u32 = 50;

fn run(options: &Options) -> Result<()> {
    if options.version {
        return Ok(print(&crate::version("TPM emulator setup tool"))?);
    }
    if options.print_capabilities {
        return capabilities();
    }
    if options.print_profiles {
        return Ok(print(&format!("{}\n", json!({ "builtin": [] })))?);
    }
    if let Some(how) = &options.create_config_files {
        return create_files::create(how.as_deref().unwrap_or_default());
    }
    options.check()?;
    if let Some(user) = &options.runas {
        identity::run_as(user)?;
    }
    let report = Report::start(options.logfile.as_deref())?;
    let made = match crate::anchored::manager()? {
        Some(manager) => anchored::make(options, &report, &manager),
        None => make(options, &report),
    };
    made.inspect_err(|error| report.failed(error))
}

fn make(options: &Options, report: &Report) -> Result<()> {
    let configuration = Configuration::read(options.config.as_deref())?;
    let location = options.state()?;
    let store_options = StoreOptions {
        create: matches!(location, swtpm_state::Location::File(_)) && !options.reconfigure,
        ..StoreOptions::default()
    };
    let mut store = StateStore::open(&location, store_options, options.key()?)
        .with_context(|| format!("{location} cannot be used: does it exist?"))?;
    store.lock(LOCK_RETRIES)?;
    let exists = store.size(StateKind::Permanent)?.is_some();
    match options.existing()? {
        Existing::Keep if exists => {
            report.say("Not overwriting existing state file.");
            return Ok(());
        }
        Existing::Refuse if exists => anyhow::bail!(
            "{location} has a TPM's state: give --overwrite to replace it, or --not-overwrite to keep it"
        ),
        Existing::Change if !exists => {
            anyhow::bail!("{location} has no TPM's state to reconfigure")
        }
        _ => {}
    }
    let (user, group) = identity::current();
    let what = match options.reconfigure {
        true => "reconfiguration",
        false => "manufacturing",
    };
    report.say(&format!(
        "Starting vTPM {what} as {user}:{group} @ {}",
        report::now()
    ));
    let state = match options.reconfigure {
        true => store.load(StateKind::Permanent)?,
        false => None,
    };
    let mut tpm = Tpm::start(state.as_ref().map(|state| state.as_slice()))?;
    if !options.reconfigure {
        manufacture(options, &configuration, &mut tpm, report)?;
    }
    if let Some(wanted) = options.banks(&configuration) {
        let all = tpm.banks()?;
        let active = banks::choose(&wanted, &all)?;
        tpm.allocate(&active, &all)?;
        let (active, all) = (banks::names(&active), banks::names(&all));
        report.say(&format!(
            "Successfully activated PCR banks {active} among {all}."
        ));
    }
    let state = tpm.end()?;
    for kind in [StateKind::Volatile, StateKind::SaveState] {
        store.remove(kind)?;
    }
    store.save(StateKind::Permanent, &state)?;
    report.say("Successfully authored TPM state.");
    report.say(&format!("Ending vTPM manufacturing @ {}", report::now()));
    Ok(())
}

/// Makes keys and certificates of a new TPM.
fn manufacture(
    options: &Options,
    configuration: &Configuration,
    tpm: &mut Tpm,
    report: &Report,
) -> Result<()> {
    if options.create_spk {
        let key = keys::storage_key(options.ecc, options.rsa_key_size(configuration)?)?;
        tpm.make(&key)?;
        report.say(&format!(
            "Successfully created storage primary key with handle 0x{:x}.",
            key.handle
        ));
    }
    if !options.makes_endorsement_keys() {
        return Ok(());
    }
    let may = Use {
        sign: options.allow_signing,
        decrypt: options.decryption || !options.allow_signing,
    };
    let authority = Authority::new(options, configuration, report)?;
    let rsa = keys::endorsement_rsa(options.rsa_key_size(configuration)?, may)?;
    for (place, key) in [rsa, keys::endorsement_p384(may)].iter().enumerate() {
        let public = tpm.make(key)?;
        report.say(&format!(
            "Successfully created {} EK with handle 0x{:x}.",
            key.name, key.handle
        ));
        if options.allow_signing {
            tpm.publish(key.template_index, &key.template, options.lock_nvram)?;
            report.say(&format!(
                "Successfully created NVRAM area 0x{:x} for {} EK template.",
                key.template_index, key.name
            ));
        }
        let certificates = authority.certify(tpm, key, &public, place == 0)?;
        for certificate in certificates {
            tpm.publish(certificate.index, &certificate.der, options.lock_nvram)?;
            report.say(&format!(
                "Successfully created NVRAM area 0x{:x} for {}.",
                certificate.index, certificate.what
            ));
            certificate.keep(options.write_ek_cert_files.as_deref(), key)?;
        }
    }
    Ok(())
}

/// `--print-capabilities`. Of what swtpm_setup 0.10.2 announces, what concerns TPM 1.2 and profiles
/// is missing.
fn capabilities() -> Result<()> {
    let mut features: Vec<String> = [
        "tpm-2.0",
        "cmdarg-keyfile-fd",
        "cmdarg-pwdfile-fd",
        "cmdarg-write-ek-cert-files",
        "cmdarg-create-config-files",
        "cmdarg-reconfigure-pcr-banks",
    ]
    .map(str::to_owned)
    .into();
    let sizes = swtpm::rsa_key_sizes()?;
    let sizes = sizes.iter().filter(|size| keys::RSA_SIZES.contains(size));
    features.extend(sizes.map(|size| format!("tpm2-rsa-keysize-{size}")));
    let said = json!({
        "type": "swtpm_setup",
        "features": features,
        "profiles": [],
        "version": crate::SWTPM_VERSION,
    });
    Ok(print(&format!("{said}\n"))?)
}

/// A folder below which a user's own configuration is.
fn user_folder() -> Result<PathBuf> {
    let of_user = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let of_home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    let folder = of_user.filter(|path| path.is_absolute()).or_else(of_home);
    let folder = folder.context("neither XDG_CONFIG_HOME nor HOME says where your files are")?;
    ensure!(
        folder.is_absolute(),
        "{} is no absolute path: set HOME to your folder",
        folder.display()
    );
    Ok(folder)
}
