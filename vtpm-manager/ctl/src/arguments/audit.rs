//! Commands about the audit log.

use std::path::PathBuf;

use cert_chain::Digest32;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Accept that the log lacks lines that the physical TPM vouched for: it was altered while no manager
    /// ran.
    ///
    /// Until then, `host show`, `audit verify` and the metrics say so. It is written into the log.
    Accept {
        /// The hash of the last of them, as the problem names it.
        #[arg(value_name = "HASH")]
        head: Digest32,
    },
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
