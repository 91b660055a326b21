//! Commands about the host: its keys and its enrolment.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::issuer::OperatorKeyChangeArgument;
use super::policy::PolicyCommand;

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
