//! Commands about the audit log.

use std::path::PathBuf;

use cert_chain::Digest32;
use clap::Subcommand;

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
