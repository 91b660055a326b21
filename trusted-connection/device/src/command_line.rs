//! The commands of `vrot-device`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attestation::event_log::{MAX_LOG, UserspaceLog};
use attestation::policy::MAX_ROOTS;
use attestation::{EventLog, Evidence, Nonce, Policy, Purpose};
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::RevocationLists;
use clap::{Parser, Subcommand};
use printable::printable_json;
use program_output::console::print;
use rustls_pki_types::UnixTime;
use serde_json::Value;

use crate::archiving::Archive;
use crate::by_hand::Connect;
use crate::challenge::{challenge, fresh_nonce};
use crate::confirmation::VerifyConfirmation;
use crate::connection_options::load_policy;
use crate::crl_options::CrlOptions;
use crate::event_log;
use crate::explaining::Explain;
use crate::judgement::Judgement;
use crate::outcome::Outcome;
use crate::proxy::Proxy;
use crate::reference::{Reference, print_reference};
use crate::root_of_trust::Enrol;
use crate::settings::Settings;
use crate::sign::Sign;
use crate::spiffe::Spiffe;
use crate::tree::{Colour, draw};
use crate::verify::Verify;
use crate::verify_data::VerifyData;

/// Judges services in VMs by their evidence and a policy, and connects to those that pass.
///
/// Exit status: 0 if the verdict is affirming, 1 if it is anything less (also if a connection ended
/// because its service could not be attested anew), 2 if there is nothing to judge (input that cannot
/// be read, a service that does not answer) or data were cut off, 3 if an archive waits for a time-stamp
/// authority's answer in a file.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// The settings: what is said there need not be said at each call. Without it: vrot/device.toml in
    /// $XDG_CONFIG_HOME or ~/.config, or else /etc/vrot/device.toml, if there is one.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Challenge a service with a fresh nonce and judge its answer.
    Attest {
        /// Where the service listens.
        #[arg(long, value_name = "HOST:PORT")]
        connect: String,
        /// What is expected of it.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        crls: CrlOptions,
        /// Print the result as JSON (an EAT attestation result).
        #[arg(long)]
        json: bool,
        /// Keep the evidence in this file.
        #[arg(long, value_name = "FILE")]
        save_evidence: Option<PathBuf>,
        /// Keep the nonce, in hexadecimal, in this file.
        #[arg(long, value_name = "FILE")]
        save_nonce: Option<PathBuf>,
    },
    /// Connect to a service, over TLS that is attested, and pass data between it and standard input
    /// and output.
    ///
    /// The connection is made only if the service's evidence, bound to this very connection, is what
    /// the policy accepts. The verdict goes to standard error, the service's data to standard output.
    /// While the connection lives, it is attested anew, and ends if that is not possible. It ends too
    /// when the service has sent all its data.
    Connect(Connect),
    /// Let any program use attested connections to a service.
    ///
    /// Each connection to the listening address gets an attested connection of its own to the service. If
    /// there is none, or it cannot be attested anew, the local connection is reset, and the log says
    /// why. SIGTERM or SIGINT ends it: no new connections are taken then, and those that are open have
    /// time to end.
    Proxy(Proxy),
    /// Have an issuer certify the identity key in this device's TPM, so that services can know the
    /// device and what it booted.
    Enrol {
        #[command(subcommand)]
        step: Enrol,
    },
    /// Attest VMs as nodes of a SPIFFE trust domain: the server's part of SPIRE's exchange.
    Spiffe {
        #[command(subcommand)]
        step: Spiffe,
    },
    /// Judge evidence from a file, without any connection.
    ///
    /// Evidence of a tenant's VMs (`--purpose tenant`) is of many VMs at a time: the verdict is then the
    /// worst of all, and less than affirming where a VM could not be quoted.
    Verify(Verify),
    /// Sign data as this device, with a key in its TPM: which device they are from, which number they have,
    /// when, and, if wanted, what had booted then. The device has to be enrolled.
    Sign(Sign),
    /// Judge data that a VM or a device signed (`vrot-service sign`, `vrot-device sign`): whom they are from,
    /// whether they are replayed, and what had booted when they were signed.
    VerifyData(VerifyData),
    /// Judge whether a person confirmed what a service asked, with `vrot-confirm` on a device.
    ///
    /// Exit status 1 if it is not accepted.
    VerifyConfirmation(VerifyConfirmation),
    /// Keep signed data so that they prove for decades what was signed, by whom, and before when.
    Archive {
        #[command(subcommand)]
        step: Archive,
    },
    /// Take evidence or an archive apart into files for OpenSSL and tpm2-tools, and draw an archive. Verifies
    /// nothing.
    Explain(Explain),
    /// Show a TCG event log and the PCR values that it leads to.
    EventLog {
        /// The log, as firmware wrote it.
        file: PathBuf,
        /// What the running system measured after it: the log that systemd writes to
        /// /run/log/systemd/tpm2-measure.log.
        #[arg(long, value_name = "LOG")]
        userspace: Option<PathBuf>,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print reference values for a policy, from a boot that is known to be good.
    Reference(Reference),
}

/// Carries out a command.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let settings = &Settings::find(arguments.config.as_deref())?;
    match &arguments.command {
        Command::Attest {
            connect,
            policy,
            crls,
            json,
            save_evidence,
            save_nonce,
        } => {
            let policy = load_policy(settings.policy(policy.as_deref())?)?;
            let crls = crls.open(settings)?.for_verification();
            let nonce = fresh_nonce()?;
            let bytes = challenge(connect, &nonce)?;
            for (path, contents) in [
                (save_evidence, bytes.as_slice()),
                (save_nonce, format!("{nonce}\n").as_bytes()),
            ] {
                if let Some(path) = path {
                    fs::write(path, contents)
                        .with_context(|| format!("{} cannot be written", path.display()))?;
                }
            }
            let evidence = Evidence::from_cbor(&bytes)
                .with_context(|| format!("{connect} answered with something else"))?;
            report(
                &judge(&evidence, &nonce, &policy, &crls, UnixTime::now()),
                *json,
            )
        }
        Command::Connect(connect) => connect.run(settings),
        Command::Proxy(proxy) => proxy.run(settings),
        Command::Enrol { step } => step.run(),
        Command::Archive { step } => step.run(settings),
        Command::Spiffe { step } => step.run(settings),
        Command::Verify(verify) => verify.run(settings),
        Command::Sign(sign) => sign.run(),
        Command::VerifyData(verify) => verify.run(settings),
        Command::VerifyConfirmation(verify) => verify.run(settings),
        Command::Explain(explain) => explain.run(),
        Command::EventLog {
            file,
            userspace,
            json,
        } => {
            let log = load_log(file)?;
            let userspace = userspace.as_deref().map(load_userspace_log).transpose()?;
            if *json {
                say_json(&event_log::to_json(&log, userspace.as_ref()))?;
            } else {
                say(&event_log::to_text(&log, userspace.as_ref()))?;
            }
            Ok(Outcome::Good)
        }
        Command::Reference(reference) => print_reference(reference),
    }
}

/// What an answer to a challenge in the clear is worth.
fn judge(
    evidence: &Evidence,
    nonce: &Nonce,
    policy: &Policy,
    crls: &RevocationLists,
    at: UnixTime,
) -> Judgement {
    Judgement::of(evidence, nonce, &Purpose::Challenge, policy, crls, at)
}

pub(crate) fn report(judgement: &Judgement, json: bool) -> Result<Outcome> {
    if json {
        say_json(&judgement.to_json())?;
    } else {
        say(&draw(judgement, Colour::of_output()))?;
    }
    Ok(judgement.verdict().into())
}

pub(crate) fn load_log(path: &Path) -> Result<EventLog> {
    let bytes = read_bounded(path, MAX_LOG)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    EventLog::parse(&bytes).with_context(|| format!("{} is no event log", path.display()))
}

fn load_userspace_log(path: &Path) -> Result<UserspaceLog> {
    /// systemd sets it before it measures and clears it once the measurement is in the log.
    const UNFINISHED: u32 = 0o1000;
    let bytes = read_bounded(path, MAX_LOG)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & UNFINISHED != 0 {
        bail!(
            "{} has its sticky bit set: a measurement was made and not logged, so no PCR that \
             the running system measures into is known. Boot again",
            path.display()
        );
    }
    UserspaceLog::parse(&bytes)
        .with_context(|| format!("{} is no log of a running system", path.display()))
}

pub(crate) fn read_roots(path: &Path) -> Result<String> {
    read_bounded_text(path, MAX_ROOTS).with_context(|| format!("{} cannot be read", path.display()))
}

pub(crate) fn say(text: &str) -> Result<()> {
    print(text).context("the result cannot be written to standard output")
}

pub(crate) fn say_json(value: &Value) -> Result<()> {
    say(&printable_json(&format!("{value:#}\n")))
}
