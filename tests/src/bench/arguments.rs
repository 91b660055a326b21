//! What a run measures, and how long it takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::pool::Pool;

/// Measures vRoTs beside their peers on this machine and writes `bench.json`.
///
/// Ours and the peer alternate in one run. What could not be measured is named, left out of the
/// file, and makes the run fail.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench")]
pub struct Arguments {
    /// How many vRoTs run at a time, and as many swtpm beside them.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=4000))]
    pub vrots: u32,
    /// How many launches are timed one by one.
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub launches: u32,
    /// How many NV writes of one VM are timed.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub writes: u32,
    /// How often windows under load alternate between ours and the peer.
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Length of such a window.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub window_s: u64,
    /// How long a signature of the physical TPM takes at least.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 70)]
    pub signature_ms: u64,
    /// Another rate at which a pool is filled than the manager's own; the storm from a full pool
    /// has the filling beside it.
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub refill_per_minute: Option<u32>,
    /// Another checkpoint interval than the default policy's, to try the bench out: the figure
    /// then has another name.
    #[arg(long, value_name = "SECONDS")]
    pub checkpoint_interval_s: Option<u64>,
    /// Leaves parts out.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub skip: Vec<Part>,
    /// Where the figures go; `bench.json` in cargo's target folder by default.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Launches one by one.
    Launch,
    /// All launches at once.
    Storm,
    /// Memory of all that run.
    Memory,
    /// NV writes of one VM and of all.
    Writes,
    /// Writes of the physical TPM under load; takes two checkpoint intervals.
    Anchor,
    /// A manager that is killed under load.
    Restart,
}

impl Arguments {
    /// Whether a part is wanted.
    pub fn wants(&self, part: Part) -> bool {
        !self.skip.contains(&part)
    }

    /// Length of a window under load.
    pub fn window(&self) -> Duration {
        Duration::from_secs(self.window_s)
    }

    /// How long a signature of the physical TPM takes at least.
    pub fn signature(&self) -> Duration {
        Duration::from_millis(self.signature_ms)
    }

    /// A pool of this size.
    pub(super) fn pool(&self, size: u32) -> Pool {
        Pool {
            size,
            refill_per_minute: self.refill_per_minute,
        }
    }

    /// The number of vRoTs.
    pub fn count(&self) -> usize {
        // At most 4000 (above).
        usize::try_from(self.vrots).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_can_be_left_out() -> anyhow::Result<()> {
        let arguments = Arguments::try_parse_from(["bench", "--skip", "anchor,restart"])?;
        assert!(arguments.wants(Part::Writes));
        assert!(!arguments.wants(Part::Anchor));
        assert!(!arguments.wants(Part::Restart));
        assert!(Arguments::try_parse_from(["bench", "--vrots", "0"]).is_err());
        Ok(())
    }
}
