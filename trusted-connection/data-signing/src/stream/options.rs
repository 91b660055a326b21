//! The part of a command line that concerns streams.

use std::time::Duration;

use clap::{Args, ValueEnum};
use signed_data::stream::MAX_READINGS;

/// How readings are told apart in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// Each line is a reading, and has to be JSON. Empty lines are passed over.
    JsonLines,
    /// Each line is a reading, whatever is in it.
    Lines,
    /// Each reading has its length before it, as four bytes, the most significant first.
    Length,
}

/// Of a command that signs.
#[derive(Args, Clone, Debug)]
pub struct StreamOptions {
    /// Sign a stream: readings from the input, one signature for each batch of them. The output is a file
    /// that grows, or standard output.
    #[arg(long, conflicts_with_all = ["attached", "replace"])]
    pub stream: bool,
    /// How readings are told apart in the input. The last line needs its line end as well.
    #[arg(long, value_enum, default_value = "json-lines", requires = "stream")]
    pub framing: Framing,
    /// A batch is signed when its first reading has waited for so long, in milliseconds; or later, while the
    /// TPM signs the one before.
    #[arg(long, value_name = "MS", default_value_t = 1000, requires = "stream",
        value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub batch_ms: u64,
    /// A batch is signed when it has so many readings, or 4 MiB of them.
    #[arg(long, value_name = "COUNT", default_value_t = MAX_READINGS, requires = "stream",
        value_parser = clap::value_parser!(u64).range(1..=MAX_READINGS))]
    pub batch_readings: u64,
    /// Go on with a stream in a file. What a signer that was killed left of an unfinished batch is removed
    /// from its end.
    #[arg(long, requires_all = ["stream", "to"])]
    pub append: bool,
    /// With --evidence: take evidence for the first batch, and anew for the one that begins so many seconds
    /// after it was taken, or could not be had.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires_all = ["stream", "evidence"])]
    pub evidence_seconds: u64,
}

impl StreamOptions {
    pub(crate) fn batch_time(&self) -> Duration {
        Duration::from_millis(self.batch_ms)
    }
}
