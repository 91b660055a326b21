//! The page that shows hosts, and where it is served.

use std::path::PathBuf;

use clap::Args;
use vrot_dashboard::Listen;

#[derive(Debug, Args)]
pub(crate) struct DashboardArguments {
    /// Where the page is served: a loopback address with a port (0 takes a free one), or the path of a
    /// Unix socket.
    #[arg(long, value_name = "ADDRESS|PATH", default_value = "127.0.0.1:7080")]
    pub(crate) listen: Listen,
    /// The socket of a host's manager, also one that `ssh -L` brings here; given once for each of
    /// several hosts. Without it, the one of --socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) host: Vec<PathBuf>,
    /// Write the token into this file, for its owner alone, and not to the terminal.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}
