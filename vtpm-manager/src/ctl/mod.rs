//! `vtpmctl`: the manager's command line, and the identity issuer's.

mod arguments;
mod client;
mod host;
mod issuer;
mod output;
mod policy;
mod vrots;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use api_types::audit::Known;
use api_types::{Problem, WithCauses};
use bounded_file::read_bounded;
use cert_chain::operator::ApprovalError;
use program_output::console::complain;

use crate::issuer::IssuerError;

pub use arguments::Arguments;
use arguments::{AuditCommand, Command};
use client::Client;
use output::Output;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CtlError {
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
    /// The issuer refused.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
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

/// Runs one command: 0 when it is done, 1 when it was refused or failed, 2 for bad input.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("vtpmctl: {}", WithCauses(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), CtlError> {
    let client = Client::new(&arguments.socket);
    let output = Output::new(arguments.output);
    match &arguments.command {
        Command::Host { command } => host::run(command, &client, &output),
        Command::Issuer { command } => issuer::run(command, &output),
        Command::Audit {
            command: AuditCommand::Verify { log, from, head },
        } => {
            let known = Known {
                from: *from,
                head: *head,
            };
            host::verify_audit_log(log.as_deref(), known, &client, &output)
        }
        Command::Vrot(command) => vrots::run(command, &client, &output),
    }
}

impl CtlError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Argument(_) | Self::File { .. } | Self::Input { .. } => 2,
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

/// A request has certificates, and the host's PCR values, in some ten kilobytes.
const MAX_FILE: usize = 1024 * 1024;

fn read(path: &Path) -> Result<Vec<u8>, CtlError> {
    read_bounded(path, MAX_FILE).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn write(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    std::fs::write(path, contents).map_err(|source| CtlError::File {
        path: path.to_owned(),
        action: "written",
        source,
    })
}
