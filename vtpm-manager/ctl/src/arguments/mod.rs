//! The commands and their options.

mod audit;
mod dashboard;
mod doctor;
mod evidence;
mod host;
mod import;
mod issuer;
mod launch;
mod libvirt;
mod policy;
mod revocation;
mod run;
mod tenant;
mod vrot;
mod watch;

use std::path::PathBuf;

use api_types::DEFAULT_SOCKET;
use clap::{Parser, Subcommand, ValueEnum};

pub(crate) use audit::AuditCommand;
pub(crate) use dashboard::DashboardArguments;
pub(crate) use doctor::{DoctorArguments, MetricsArguments};
pub(crate) use evidence::EvidenceArguments;
pub(crate) use host::{HostCommand, InitArguments};
pub(crate) use import::ImportArguments;
pub(crate) use issuer::{IssuerCommand, OperatorKeyCommand};
pub(crate) use launch::LaunchArguments;
pub(crate) use libvirt::{HookArguments, LibvirtCommand, SyncArguments, XmlArguments};
pub(crate) use policy::{PolicyCommand, SignArguments};
pub(crate) use revocation::{CrlArguments, RevokeArguments, WhoseArguments};
pub(crate) use run::RunArguments;
pub(crate) use tenant::{AddArguments, RevokeTenantArguments, TenantCommand};
pub(crate) use vrot::VrotCommand;
pub(crate) use watch::WatchArguments;

/// Virtualized roots of trust, anchored in this host's physical TPM.
///
/// A host's life:  `host init`, `host enrol`.
/// A VM's life:  `create`, `start`, `qemu-args`, `stop`, `delete`; or all of it, `run`.
/// The identity issuer, a folder on any machine:  `issuer init`, `issuer challenge`,
/// `issuer certify`, `issuer revoke`, `issuer crl`.
/// The operator, on a machine that is no host:  `host policy keygen`, `host policy sign`.
///
/// Exit status: 0 done, 1 refused or failed, 2 bad input.
#[derive(Debug, Parser)]
#[command(name = "vtpmctl", version, verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Where the manager listens.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, global = true,
        env = "VTPM_MANAGER_SOCKET")]
    pub(crate) socket: PathBuf,
    /// How results are written. Progress and errors go to standard error.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        global = true
    )]
    pub(crate) output: OutputFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The form of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON value.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Vrot(VrotCommand),
    /// Have VMs quoted with a nonce, without their guests, and the host vouch for all of them with one
    /// signature: an evidence set for their tenant.
    ///
    /// Who judges it says which purpose is meant: `vrot-device verify --purpose tenant`.
    Evidence(EvidenceArguments),
    /// Run a VM with its vRoT: create it if there is none, start it, run QEMU with it, and stop it
    /// when QEMU has ended.
    ///
    /// QEMU keeps this terminal, and is passed SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2.
    /// Exit status: that of QEMU, or 128 and the number of the signal that ended it; 125 if the vRoT
    /// could not be brought up, or not be stopped after a QEMU that ended well; 126 if QEMU cannot be
    /// executed, 127 if there is none.
    #[command(verbatim_doc_comment)]
    Run(RunArguments),
    #[command(flatten)]
    Libvirt(LibvirtCommand),
    /// Take the TPMs of VMs that are off over from swtpm: each becomes the vRoT of its VM, with all that
    /// is in it, and its old place is kept and put out of use. A failure concerns its own place only.
    ///
    /// Until now, such a TPM's secrets lay outside of the physical TPM's protection: whoever has copied
    /// its state has its endorsement seed, also from now on.
    #[command(verbatim_doc_comment)]
    Import(ImportArguments),
    /// Tell what happens to vRoTs as it happens, one line each, until this command is ended.
    ///
    /// A manager that is restarted is waited for, and what it cannot tell any more is said. With
    /// `--output json` each line is one JSON object, as in `GET /v1/events`.
    #[command(verbatim_doc_comment)]
    Watch(WatchArguments),
    /// The manager's metrics in the text format of Prometheus, with whether it answers, when the host's
    /// certificate ends and what is free on the disk.
    ///
    /// Exit status: 1 if the manager does not answer, which the metrics say as well.
    #[command(verbatim_doc_comment)]
    Metrics(MetricsArguments),
    /// Look at this host from its TPM to its unit files, and say what to do about what is wrong.
    ///
    /// Changes nothing, and needs no manager that runs. Not everybody sees everything: root does.
    /// Exit status: 0 nothing is wrong, 1 something does not work or will not soon, 3 there are
    /// warnings only.
    #[command(verbatim_doc_comment)]
    Doctor(DoctorArguments),
    /// The host: its keys, its policy, its enrolment.
    Host {
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Serve a page that shows hosts, their vRoTs and what happens, as it happens, until this command is
    /// ended. It only looks, and shows nothing to browsers without the token.
    ///
    /// Other machines reach it through a tunnel: `ssh -L 7080:127.0.0.1:7080 HOST`.
    #[command(verbatim_doc_comment)]
    Dashboard(DashboardArguments),
    /// The identity issuer: a folder, used without the manager.
    Issuer {
        #[command(subcommand)]
        command: IssuerCommand,
    },
    /// The log of everything that was issued, started, stopped, deleted and refused.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
