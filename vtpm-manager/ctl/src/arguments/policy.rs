//! Commands about what a host's keys are sealed to, and what an operator approves.

use std::path::PathBuf;

use cert_chain::operator::RequiredPcrs;
use clap::{Args, Subcommand};

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
