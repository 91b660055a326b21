//! `vtpm-managerd`: start, serve, shut down.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use program_output::log;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::api;
use crate::causes::WithCauses;
use crate::config::{Config, ConfigError, DEFAULT_CONFIG};
use crate::evidence;
use crate::manager::{Manager, ManagerError};

/// Manages the virtualized roots of trust of this host, anchored in its physical TPM.
///
/// On SIGTERM or SIGINT the daemon ends and leaves running vRoTs running; when it is started
/// again, it takes them over.
#[derive(Debug, Parser)]
#[command(name = "vtpm-managerd", version)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// How log lines on standard error look. RUST_LOG says which (by default `info`).
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The manager could not start or end.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The runtime could not be started.
    #[error("the asynchronous runtime cannot be started")]
    Runtime(#[source] std::io::Error),
    /// Serving the API failed.
    #[error("the API failed")]
    Serve(#[source] std::io::Error),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for")]
    Signal(#[source] std::io::Error),
    /// The API's socket could not be made.
    #[error("`{}` cannot be listened on", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The binding to the TPM's software stack logs as an error whatever a TPM refuses, even where
/// that is an answer like any other; what matters of it is in our own errors.
const DEFAULT_LOG: &str = "info,tss_esapi=off";

/// What the disk and the TPM get to take what running vRoTs have pushed.
const ENDING: Duration = Duration::from_secs(10);
/// Beyond that: for answers that are under way. Together far less than the 90 s that a service
/// manager usually grants.
const LAST_RESORT: Duration = Duration::from_secs(20);

/// Runs the daemon to its end. 0 after a shutdown, 1 after a failure, 2 for a bad configuration,
/// 101 after a panic.
pub fn main(arguments: &Arguments) -> ExitCode {
    let _log = start_log(arguments.log_format);
    log::on_panic(|_| end_at_once());
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", WithCauses(&error));
            match error {
                DaemonError::Config(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), DaemonError> {
    let config = Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signal)?;
    let path = config.socket.clone();
    if let Some(problem) = evidence::event_log_problem(&config.event_log).await {
        tracing::warn!("{problem}: no VM gets evidence of this host. `event_log` names the file");
    }
    let manager = Manager::open(config).await?;
    let listener = api::listen(&path)
        .await
        .map_err(|source| DaemonError::Socket {
            path: path.clone(),
            source,
        })?;
    tracing::info!(socket = %path.display(), vrots = manager.registry().all().len(), "ready");
    let ending = Arc::clone(&manager);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down; running vRoTs go on");
        ending.end_within(ENDING);
        end_at_last();
    };
    api::serve(Arc::clone(&manager), listener, shutdown)
        .await
        .map_err(DaemonError::Serve)?;
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(%error, "the API's socket is left behind");
    }
    manager.close().await?;
    Ok(())
}

/// A TPM that does not even refuse, or a disk that hangs, keeps a thread of ours. Nothing that
/// was acknowledged depends on its end.
fn end_at_last() {
    std::thread::spawn(|| {
        std::thread::sleep(ENDING + LAST_RESORT);
        tracing::error!("the manager does not come to an end, so it is cut off");
        std::process::exit(1);
    });
}

fn start_log(format: LogFormat) -> log::Guard {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let format = match format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    log::start(filter, format)
}

/// Of a program that panicked, by Rust's convention.
const PANICKED: i32 = 101;

/// A panic, in whichever task or thread, leaves a manager of which nobody knows what it still
/// does. It ends as if it had been killed, which it is made for: running vRoTs go on, and the next
/// manager, which the service manager starts, takes them over. Nothing is cleaned up, because that
/// could wait for what is not there any more.
#[expect(unsafe_code, reason = "no library ends a process without cleaning up")]
fn end_at_once() {
    log::flush();
    // SAFETY: it ends the process, and touches nothing in it.
    unsafe { nix::libc::_exit(PANICKED) }
}
