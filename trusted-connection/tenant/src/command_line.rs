//! The commands of `vrot-tenant`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use attestation::Verdict;
use cert_chain::{HostName, VmId};
use clap::{Args, Parser, Subcommand};
use trusted_connection::settings_file;

use crate::attestations::Attestation;
use crate::outcome::{Outcome, Output};
use crate::policies::Which;
use crate::settings::Settings;
use crate::tenant::{FromHost, Tenant};
use crate::{json, show, watch};

/// Asks the hosts of a tenant's VMs how it stands with them, and judges their evidence.
///
/// Exit status: 0 if everything that was asked is answered and each verdict is affirming; 1 if a verdict
/// is less than that; 2 if there is nothing to show or judge (settings that cannot be used, a VM that no
/// host has); 3 if a host did not answer, and nothing is wrong with what the others said.
#[derive(Debug, Parser)]
#[command(name = "vrot-tenant", version)]
pub struct Arguments {
    /// The settings. Without it: vrot/tenant.toml in $XDG_CONFIG_HOME or ~/.config, or else
    /// /etc/vrot/tenant.toml.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Only this host of the settings. Can be given several times.
    #[arg(long, value_name = "NAME", global = true)]
    host: Vec<HostName>,
    /// How to print results.
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List your VMs on all hosts. Nothing of it is verified: see `attest`.
    Vms,
    /// Show one VM, with its keys and certificates. Nothing of it is verified: see `attest`.
    Show {
        /// The VM.
        #[arg(value_name = "VM")]
        vm: VmId,
    },
    /// Have VMs quoted by their hosts, without their guests, with fresh nonces, and judge the evidence.
    Attest(Attest),
    /// Follow what happens to your VMs, until it is interrupted. With `--output json`, one JSON object a
    /// line.
    Watch {
        /// Begin with what happened before, as far as the hosts keep it.
        #[arg(long)]
        earlier: bool,
    },
}

#[derive(Debug, Args)]
struct Attest {
    /// Which VMs. A VM that no host has is not affirmed.
    #[arg(value_name = "VM", conflicts_with = "all")]
    vms: Vec<VmId>,
    /// All that the hosts have, and those that the settings have a policy for.
    #[arg(long)]
    all: bool,
    /// What is expected of VMs for which the settings have no policy of their own, in place of the settings'
    /// general one.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Keep the evidence of each host in this folder (HOST.cbor), and what it answers (HOST.nonce), for
    /// `vrot-device verify --purpose tenant`.
    #[arg(long, value_name = "DIR")]
    save_evidence: Option<PathBuf>,
}

/// Carries out a command.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let file = settings_file(arguments.config.as_deref())?;
    let settings = Settings::load(&file)?.only(&arguments.host)?;
    let tenant = Tenant::open(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let output = arguments.output;
    match &arguments.command {
        Command::Vms => {
            let told = runtime.block_on(tenant.vms());
            output.say(|| json::vms(&told), || show::vms(&told))?;
            Ok(completeness(&told))
        }
        Command::Show { vm } => {
            let told = runtime.block_on(tenant.vm(vm));
            output.say(|| json::vm(&told), || show::vm(vm, &told))?;
            let is_found = (told.iter()).any(|from| matches!(&from.answer, Ok(Some(_))));
            Ok(match (is_found, completeness(&told)) {
                (false, Outcome::Good) => Outcome::Nothing,
                (_, outcome) => outcome,
            })
        }
        Command::Attest(attest) => {
            if attest.vms.is_empty() && !attest.all {
                bail!("which VMs are to be attested? Name them, or give --all");
            }
            let which = match attest.all {
                true => Which::All,
                false => Which::These(attest.vms.clone()),
            };
            let settings = match &attest.policy {
                Some(policy) => settings.with_policy(policy.clone()),
                None => settings,
            };
            let policies = settings.policies()?;
            if let Some(vm) = policies.without_policy(&which) {
                let whose = vm.map_or_else(|| "all VMs".to_owned(), |vm| format!("VM {vm}"));
                bail!(
                    "{} has no policy for {whose}: add `policy`, or give --policy",
                    file.display()
                );
            }
            let told = runtime.block_on(tenant.attest(&which, &policies));
            if let Some(folder) = &attest.save_evidence {
                save(&told, folder)?;
            }
            output.say(|| json::attestation(&told), || show::attestation(&told))?;
            Ok(outcome_of(&told))
        }
        Command::Watch { earlier } => runtime.block_on(watch::run(&tenant, *earlier, output)),
    }
}

fn completeness<T>(told: &[FromHost<T>]) -> Outcome {
    match told.iter().all(|from| from.answer.is_ok()) {
        true => Outcome::Good,
        false => Outcome::Incomplete,
    }
}

/// A VM that is missing may be on the host that did not answer.
fn outcome_of(told: &Attestation) -> Outcome {
    let answered = told
        .hosts
        .iter()
        .filter_map(|from| from.answer.as_ref().ok());
    let judged = answered.filter_map(|judged| judged.outcome.verdict()).max();
    match judged {
        Some(Verdict::Warning | Verdict::Contraindicated) => Outcome::NotAffirming,
        _ if !told.is_complete() => Outcome::Incomplete,
        _ if !told.missing.is_empty() => Outcome::NotAffirming,
        Some(Verdict::Affirming) => Outcome::Good,
        None => Outcome::Nothing,
    }
}

fn save(told: &Attestation, folder: &Path) -> Result<()> {
    for from in &told.hosts {
        let Ok(judged) = &from.answer else { continue };
        if judged.evidence.is_empty() {
            continue;
        }
        let nonce = format!("{}\n", judged.nonce);
        for (ending, contents) in [
            ("cbor", judged.evidence.as_slice()),
            ("nonce", nonce.as_bytes()),
        ] {
            let path = folder.join(format!("{}.{ending}", from.host));
            fs::write(&path, contents)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    Ok(())
}

/// The file that was given, or the first that there is.
fn settings_file(given: Option<&Path>) -> Result<PathBuf> {
    settings_file::find(given, "tenant.toml").map_err(|places| {
        let looked: Vec<String> = (places.iter())
            .map(|place| place.display().to_string())
            .collect();
        anyhow!(
            "there are no settings: {} are looked for; or give --config",
            looked.join(" and ")
        )
    })
}
