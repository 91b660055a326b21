//! Why a configuration was refused.

use std::path::PathBuf;

use attestation::TomlError;

use super::checks::{LONGEST_DEADLINE_MS, MAX_RUNTIME_DIR};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A deadline that is too short or too long.
    #[error(
        "{}: `durability_deadline_ms` is {milliseconds}: write 1 to {LONGEST_DEADLINE_MS} \
         milliseconds",
        config.display()
    )]
    Deadline {
        /// The configuration.
        config: PathBuf,
        /// Its value.
        milliseconds: u32,
    },
    /// An interval that is too short or too long.
    #[error("{}: `checkpoint_interval_s` is {seconds}: write 1 to 65535 seconds", config.display())]
    Interval {
        /// The configuration.
        config: PathBuf,
        /// Its value.
        seconds: u64,
    },
    /// A certificate that lives too short or too long, or is renewed too late.
    #[error(
        "{}: `{field}` is {seconds}: write {least} to {most} seconds", config.display()
    )]
    Renewal {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Its value.
        seconds: u64,
        /// The least that is accepted.
        least: u64,
        /// The most that is accepted.
        most: u64,
    },
    /// Somebody who is not there.
    #[error("{}: `{field}` names `{name}`, which this host does not know", config.display())]
    Nobody {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Who.
        name: String,
    },
    /// The manager cannot tell where its own program is.
    #[error(
        "`backend` is not set, and the manager cannot find its own program beside which it would look"
    )]
    OwnProgram(#[source] std::io::Error),
    /// The file cannot be read.
    #[error("the configuration `{}` cannot be read: pass another one with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path that depends on where the daemon was started.
    #[error("{}: `{field}` is `{}`: write an absolute path", config.display(), value.display())]
    Relative {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// Its value.
        value: PathBuf,
    },
    /// A value that makes no sense, by itself or beside others.
    #[error("{}: `{field}` {problem}", config.display())]
    Value {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
    /// PCRs that do not exist, or none.
    #[error("{}: `{field}` names no set of PCRs: {reason}", config.display())]
    Pcrs {
        /// The configuration.
        config: PathBuf,
        /// Which entry.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Sockets in this folder would have names that are too long.
    #[error(
        "{}: `runtime_dir` has {length} bytes, at most {MAX_RUNTIME_DIR} leave room for the \
         names of sockets: choose a shorter one",
        config.display()
    )]
    RuntimeDirTooLong {
        /// The configuration.
        config: PathBuf,
        /// Length of the path.
        length: usize,
    },
    /// Not TOML, or not with these entries.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: TomlError,
    },
}
