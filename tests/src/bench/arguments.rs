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
    /// Each third is followed by one of a VM with a number of its own, and by one of swtpm.
    #[arg(long, value_name = "N", default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub launches: u32,
    /// How many NV writes of one VM are timed.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub writes: u32,
    /// How many commands of each kind are timed one by one.
    #[arg(long, value_name = "N", default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub commands: u32,
    /// How often windows under load alternate between ours and the peer.
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Length of such a window.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub window_s: u64,
    /// How long a guest thinks between two commands while the manager is killed and while writes
    /// of the physical TPM's flash are counted. Elsewhere guests do not think at all.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    pub think_ms: u64,
    /// How long a signature of the physical TPM takes at least, and one of the vRoT in the part `signing`. Its other commands are as fast as
    /// swtpm, except where the next option says otherwise.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 70)]
    pub signature_ms: u64,
    /// NV writes are measured a second time with a physical TPM whose other commands take so
    /// long, reads and writes of NV among them; the figures then end in `_tpm_commands_N_ms`. 0
    /// leaves them out.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10)]
    pub command_ms: u64,
    /// An answer that took longer across a restart of the manager counts as failed. A vRoT answers
    /// after 500 ms, durable or not.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    pub late_ms: u64,
    /// How large the file is that is archived.
    #[arg(long, value_name = "MIB", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub archive_mib: u32,
    /// How many records are archived as one; of another number the figures have another name.
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub records: u32,
    /// Another rate at which the pool is refilled beside a storm than the manager's own.
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
    /// Serves as the echo server of the part `commands`, at standard input.
    #[arg(long, hide = true)]
    pub echo: bool,
    /// Where the figures go; `bench.json` in cargo's target folder by default, `bench-debug.json`
    /// for a debug build, whose figures say nothing.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Launches one by one, on an empty host and beside all vRoTs.
    Launch,
    /// Commands of one guest that does not write, one by one, on an idle and on a busy machine.
    Commands,
    /// Boots of a guest with SeaBIOS, without a TPM and with one.
    Boot,
    /// Commands of a program in a guest, which boots once for each device.
    Guest,
    /// All launches at once.
    Storm,
    /// Memory of all that run.
    Memory,
    /// NV writes of one VM and of all.
    Writes,
    /// Writes of the physical TPM's flash under load; takes two to three checkpoint intervals, of
    /// which the part `writes` is a part.
    Anchor,
    /// A manager that is killed, and restarted as planned, under load.
    Restart,
    /// A page that shows all vRoTs, in Chromium.
    Dashboard,
    /// A tenant that asks for the list of all VMs and for evidence of them, and a thousand who follow events.
    Tenants,
    /// Readings that a VM signs one by one and in batches, with a TPM whose signatures are slow.
    Signing,
    /// Attested connections to all VMs.
    Connection,
    /// Archives of a large file and of many records.
    Archive,
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

    /// How long a busy guest thinks between two commands.
    pub fn think(&self) -> Duration {
        Duration::from_millis(self.think_ms)
    }

    /// How long a signature of the physical TPM takes at least, and one of the vRoT in the part `signing`.
    pub fn signature(&self) -> Duration {
        Duration::from_millis(self.signature_ms)
    }

    /// How long the physical TPM's other commands take where that is measured.
    pub fn command(&self) -> Option<Duration> {
        (self.command_ms > 0).then(|| Duration::from_millis(self.command_ms))
    }

    /// From when on an answer is late.
    pub fn late(&self) -> Duration {
        Duration::from_millis(self.late_ms)
    }

    /// A pool of this size, as it is refilled beside a storm.
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
