//! The commands and their options.

use std::path::PathBuf;

use api_types::wire::TpmDeviceModel;
use api_types::{DEFAULT_SOCKET, VrotKey};
use cert_chain::operator::RequiredPcrs;
use cert_chain::{Digest32, Domain, Tenant, TpmName, VmId};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::issuer::OperatorKeyChange;

/// Virtualized roots of trust, anchored in this host's physical TPM.
///
/// A host's life:  `host init`, `host enrol`.
/// A VM's life:  `create`, `start`, `qemu-args`, `stop`, `delete`.
/// The identity issuer, a folder on any machine:  `issuer init`, `issuer challenge`,
/// `issuer certify`.
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
    /// The host: its keys, its policy, its enrolment.
    Host {
        #[command(subcommand)]
        command: HostCommand,
    },
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

#[derive(Debug, Subcommand)]
pub(crate) enum VrotCommand {
    /// Manufacture a vRoT for a VM: keys, certificates, state.
    Create {
        /// The VM's UUID; the manager chooses one if it is left out.
        #[arg(long, value_name = "UUID")]
        vm: Option<VmId>,
        /// Whose VM it is.
        #[arg(long)]
        tenant: Tenant,
        /// A name for people.
        #[arg(long)]
        name: Option<String>,
        /// Start it, too.
        #[arg(long)]
        start: bool,
    },
    /// Start a vRoT, so that a VMM can attach.
    Start(VrotArgument),
    /// Stop a vRoT; its state is kept.
    Stop(VrotArgument),
    /// Stop the vRoT of a paused VM and keep its volatile state, PCRs among it.
    Suspend(VrotArgument),
    /// Start a suspended vRoT as it was.
    Resume(VrotArgument),
    /// List all vRoTs of the host.
    List,
    /// Show one vRoT.
    Show(VrotArgument),
    /// Delete a vRoT for good: its key is destroyed, its state can never be opened again.
    Delete(VrotArgument),
    /// Show a vRoT's keys and certificates.
    Identity {
        #[command(flatten)]
        vrot: VrotArgument,
        /// Renew the certificates first, although they are not due: of a vRoT that runs now, of
        /// another one when it starts.
        #[arg(long)]
        renew: bool,
    },
    /// Print the arguments that attach a vRoT to QEMU.
    QemuArgs {
        #[command(flatten)]
        vrot: VrotArgument,
        /// The interface that the guest sees.
        #[arg(long, value_enum, default_value_t)]
        device: Device,
    },
}

/// How the guest sees its TPM.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Device {
    /// Command response buffer.
    #[default]
    TpmCrb,
    /// TPM interface specification (FIFO).
    TpmTis,
}

#[derive(Debug, Args)]
pub(crate) struct VrotArgument {
    /// UUID of the VM, or of the vRoT.
    #[arg(value_name = "VM")]
    pub(crate) vrot: VrotKey,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Make the host's keys in the physical TPM.
    ///
    /// The keys work only while the host's PCRs have values that the operator's key approved.
    /// That key is elsewhere: the host gets its public half, and waits for an approval.
    Init(InitArguments),
    /// Show the host's keys and its certificate.
    Show,
    /// Enrol with a local issuer: request, challenge, answer and certificate in one go.
    Enrol {
        /// The label that the host is to get in the issuer's domain.
        #[arg(long, value_name = "LABEL")]
        name: String,
        /// The issuer's folder.
        #[arg(long, value_name = "DIR")]
        issuer: PathBuf,
        #[command(flatten)]
        change: OperatorKeyChangeArgument,
    },
    /// Enrolment, first message: what the issuer needs to know of this host.
    Request {
        /// The label that the host is to get in the issuer's domain.
        #[arg(long, value_name = "LABEL")]
        name: String,
        /// Where to write the request.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Enrolment, third message: the answer to the issuer's challenge.
    Answer {
        /// The issuer's challenge.
        #[arg(long, value_name = "FILE")]
        challenge: PathBuf,
        /// Where to write the answer.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Enrolment, fourth message: install the certificate.
    Install {
        /// The certificate from the issuer.
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
    },
    /// Accept the present store although the physical TPM does not vouch for it.
    ///
    /// When the newest store cannot be put back. What may be lost stays lost: the vRoTs that it
    /// concerns get a new generation, which verifiers see, and it is written into the audit log.
    Recover {
        /// What is accepted: the short name of the refusal that `host show` prints.
        #[arg(long, value_name = "REFUSAL")]
        accept: String,
        /// Do not ask. Needed where nobody sits at a terminal.
        #[arg(long)]
        yes: bool,
    },
    /// What the host's keys are sealed to, and what an operator approved.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct InitArguments {
    /// The public half of the operator's key, as `host policy keygen` writes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_key: Option<PathBuf>,
    /// Make an operator's key on this host, keep it in the manager's state folder, and approve
    /// what the host booted. For a trial only: a key on the host can approve whatever it boots.
    #[arg(long)]
    pub(crate) trial: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Make an operator's key, where it is to stay: not on a host.
    Keygen {
        /// Where to write the private key; nothing is overwritten.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where to write the public key, which hosts and issuers get; without it, beside the
        /// private key, with the ending .pub.
        #[arg(long, value_name = "FILE")]
        public: Option<PathBuf>,
    },
    /// Show what the host's keys are sealed to, and whether the host is in that state.
    Show,
    /// Sign an approval of PCR values, where the operator's key is.
    Sign(SignArguments),
    /// Hand an approval to the host's manager.
    Approve {
        /// The approval.
        #[arg(value_name = "FILE")]
        approval: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// The operator's private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// A name for what is approved, e.g. the software's version.
    #[arg(long, default_value = "present values")]
    pub(crate) label: String,
    /// The PCRs that the approval must cover, so that it fits one boot only: numbers and ranges.
    #[arg(long, value_name = "LIST", default_value = "0-7")]
    pub(crate) require_pcrs: RequiredPcrs,
    /// Approve required PCRs that were never extended, too. Such an approval fits any boot: for
    /// platforms that measure nothing, as a software TPM without firmware.
    #[arg(long)]
    pub(crate) accept_unextended: bool,
    #[command(flatten)]
    pub(crate) values: ValuesArguments,
    #[command(flatten)]
    pub(crate) destination: DestinationArguments,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ValuesArguments {
    /// The values: what `host policy show --output json` printed on the host, or a JSON file
    /// `{"0":"HEX",…}`.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcrs: Option<PathBuf>,
    /// The present values of the host whose manager is at --socket: where key and host are on one
    /// machine.
    #[arg(long)]
    pub(crate) from_host: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct DestinationArguments {
    /// Where to write the approval.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Hand it to the manager at --socket at once: where key and host are on one machine.
    #[arg(long)]
    pub(crate) approve: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OperatorKeyChangeArgument {
    /// Certify a host under another operator key than before. It is written down.
    #[arg(long)]
    pub(crate) replace_operator_key: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IssuerCommand {
    /// Make an issuer: a key and a root certificate.
    Init {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The DNS domain in which hosts are named.
        #[arg(long)]
        domain: Domain,
        /// Certificates (PEM) of the TPM makers whose TPMs are accepted.
        #[arg(long, value_name = "PEM")]
        tpm_roots: PathBuf,
        /// Public keys (PEM) of the operators who approve what hosts boot. Hosts under other keys
        /// are not certified, and without any, no host is.
        #[arg(long, value_name = "PEM", num_args = 1..)]
        operator_keys: Vec<PathBuf>,
    },
    /// The operator keys that the issuer accepts.
    OperatorKey {
        #[command(subcommand)]
        command: OperatorKeyCommand,
    },
    /// Check a host's request, and challenge its TPM.
    Challenge {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The host's request.
        #[arg(long, value_name = "FILE")]
        request: PathBuf,
        /// Where to write the challenge.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        change: OperatorKeyChangeArgument,
    },
    /// Check a host's answer, and certify the host.
    Certify {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The host's answer.
        #[arg(long, value_name = "FILE")]
        answer: PathBuf,
        /// Where to write the certificate.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorKeyCommand {
    /// Accept more keys.
    Add {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// Public keys (PEM), as `host policy keygen` writes them.
        #[arg(value_name = "PEM", required = true)]
        keys: Vec<PathBuf>,
    },
    /// List the keys that are accepted.
    List {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
    },
    /// Accept a key no more, as when it was stolen. Certificates that hosts have stay valid.
    Remove {
        /// The issuer's folder.
        #[arg(long = "dir", alias = "directory", value_name = "DIR")]
        directory: PathBuf,
        /// The key's name.
        #[arg(value_name = "NAME")]
        operator_key: TpmName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no line was changed, inserted or taken out.
    Verify {
        /// The newest part of a log, with the older ones beside it; without it, the manager checks
        /// its own.
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// The hash of the last line of the parts that were taken away. It must be in the log or
        /// be what the first line goes on from.
        #[arg(long, value_name = "HASH")]
        from: Option<Digest32>,
        /// A hash that was the newest one earlier: a line with it must still be there.
        #[arg(long, value_name = "HASH")]
        head: Option<Digest32>,
    },
}

impl From<Device> for TpmDeviceModel {
    fn from(device: Device) -> Self {
        match device {
            Device::TpmCrb => Self::TpmCrb,
            Device::TpmTis => Self::TpmTis,
        }
    }
}

impl OperatorKeyChangeArgument {
    pub(crate) fn change(&self) -> OperatorKeyChange {
        if self.replace_operator_key {
            OperatorKeyChange::Accept
        } else {
            OperatorKeyChange::Refuse
        }
    }
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
