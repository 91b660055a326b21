//! Looking at a host, once or again and again.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// The manager's configuration.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/vtpm-manager/config.toml"
    )]
    pub(crate) config: PathBuf,
    /// The manager's program; without it, the one beside this program.
    #[arg(long, value_name = "FILE")]
    pub(crate) manager: Option<PathBuf>,
    /// A revocation list that is handed to services or devices: whether it ends soon. Can be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) crl: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArguments {
    /// Write them into this file, in place of one that is there; without it, to standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}
