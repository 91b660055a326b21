//! What is wrong with an audit log.

use std::io;
use std::path::PathBuf;

use cert_chain::Digest32;

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Two parts that do not belong together.
    #[error(
        "`{}` does not continue `{}`: lines were cut off there, or one of the two is not the part \
         that belongs here. Keep all parts as they are, for whoever looks into it, in another \
         folder; the manager then begins a new log",
        path.display(), before.display()
    )]
    Apart {
        /// The later part.
        path: PathBuf,
        /// The one before.
        before: PathBuf,
    },
    /// It begins behind lines that are not there.
    #[error(
        "`{}` goes on from a line with the hash {after}, which is in no part before it{}: put the \
         parts back that were taken away or, if you archived and checked them, state their last \
         hash with `audit_begins_after` in the manager's configuration, and with --from",
        path.display(),
        stated.map_or_else(String::new, |stated| format!(
            ", and the hash that was stated as the beginning, {stated}, is in no part at all"
        ))
    )]
    Begins {
        /// The first part.
        path: PathBuf,
        /// What its first line names as previous; zeros, if it is the first of all.
        after: Digest32,
        /// What somebody said the log goes on from.
        stated: Option<Digest32>,
    },
    /// The chain is broken.
    #[error(
        "`{}`, line {line}: {problem}: the log was altered here. Keep all its parts as they are, \
         for whoever looks into it, in another folder; the manager then begins a new log",
        path.display()
    )]
    Broken {
        /// The part.
        path: PathBuf,
        /// Counted from one in its part.
        line: u64,
        /// How.
        problem: &'static str,
    },
    /// A part is not there.
    #[error(
        "the part `{}` of the audit log is missing, though `{}` is there: put it back",
        path.display(), beside.display()
    )]
    Missing {
        /// It.
        path: PathBuf,
        /// One that is there.
        beside: PathBuf,
    },
    /// There is no line that goes on from what was taken away.
    #[error(
        "`{}` has no line, and the parts before it were taken away: put the last of them back",
        path.display()
    )]
    Nothing {
        /// The newest part.
        path: PathBuf,
    },
    /// Whole lines, but not those that were written.
    #[error(
        "no line of `{}` has the hash {known}, which was the newest one: lines were cut off at the \
         end, or the log was made anew",
        path.display()
    )]
    Replaced {
        /// The newest part.
        path: PathBuf,
        /// The hash that is not in any.
        known: Digest32,
    },
    /// The file cannot be used.
    #[error("the audit log `{}` cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
