//! Why a command failed.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use api_types::{OPENING, Problem};
use cert_chain::operator::ApprovalError;
use durable_file::OutputError;

use swtpm_state::StoreError;

use crate::import::ImportError;
use crate::issuer::IssuerError;
use crate::launch::LaunchError;
use crate::libvirt::LibvirtError;
use crate::run::CommandLineError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// A file that was given cannot be used.
    #[error("`{}` cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file that was given does not hold what is needed.
    #[error("`{}` is not what is needed here", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file cannot be made.
    #[error(transparent)]
    OutputFile(#[from] OutputError),
    /// What a file would be written over is something else.
    #[error(
        "`{}` holds {found}, which stays: {wanted} does not take its place; name another file, or move \
         that one away",
        path.display()
    )]
    Occupied {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What was to be written.
        wanted: String,
    },
    /// The issuer refused.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// A place was not imported, or not given back.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A place of swtpm's cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A VMM's command line cannot be run.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// A VM cannot be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A domain of libvirt is refused.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// The page of the hosts cannot be served.
    #[error(transparent)]
    Page(#[from] vrot_dashboard::ListenError),
    /// There is no token for it.
    #[error(transparent)]
    Token(#[from] vrot_dashboard::TokenError),
    /// Signals cannot be passed on.
    #[error("signals cannot be caught")]
    Signals(#[source] std::io::Error),
    /// The log was altered.
    #[error("{problem}")]
    LogAltered {
        /// Where and how.
        problem: String,
    },
    /// An argument has no sensible value.
    #[error("{0}")]
    Argument(String),
    /// The manager refused.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// What was done cannot be told.
    #[error("the result cannot be written to standard output")]
    Output(#[source] std::io::Error),
    /// The operator's key cannot be made or used.
    #[error(transparent)]
    PolicyKey(#[from] ApprovalError),
    /// The host is in a state that was not approved.
    #[error(
        "the host's PCRs are not as approved (`vtpmctl host policy show` says which). If the \
         change is wanted, have the operator approve the present values: `vtpmctl host policy sign`"
    )]
    PolicyNotSatisfied,
    /// The store is refused: no vRoT of this host can be used.
    #[error("the store is refused. {problem}")]
    StoreRefused {
        /// Why, and what to do about it.
        problem: String,
    },
    /// What the manager said cannot be understood.
    #[error("the manager's answer cannot be understood: are daemon and vtpmctl of one version?")]
    Response(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It gives no sign of life.
    #[error("the manager has given no sign of life for {} s", time.as_secs())]
    Silent {
        /// How long.
        time: Duration,
    },
    /// The manager cannot be reached.
    #[error("the manager cannot be reached at `{}`: {}", socket.display(), why_unreachable(source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl CtlError {
    /// Whether the manager has just started, and will be there in a moment.
    pub(crate) fn is_opening(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.code() == OPENING)
    }

    /// The exit status: 2 for bad input, 1 for everything else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Argument(_)
            | Self::File { .. }
            | Self::Input { .. }
            | Self::Occupied { .. }
            | Self::OutputFile(_) => 2,
            Self::Refused(problem) if problem.status == 400 => 2,
            _ => 1,
        }
    }
}

/// What a failed connection to a Unix socket means here, and what to do (unix(7), connect(2)).
fn why_unreachable(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => {
            "there is no such socket; start vtpm-managerd, or name its socket with --socket"
        }
        ErrorKind::ConnectionRefused => {
            "nothing listens there; start vtpm-managerd, or name its socket with --socket"
        }
        ErrorKind::PermissionDenied => {
            "this user may not use it; run this as root, or as a user in the socket's group that \
             the manager's configuration allows (allowed_uids)"
        }
        _ => "the operating system refused",
    }
}
