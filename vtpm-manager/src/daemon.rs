//! `vtpm-managerd`: start, serve, shut down.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use clap::{Parser, ValueEnum};
use program_output::console::{complain, print};
use program_output::log;
use sd_notify::NotifyState;
use tenant_api::{Bound, ServerCertificate, TenantApiError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::api::{self, Api};
use crate::config::{Config, ConfigError, DEFAULT_CONFIG};
use crate::fault::Fault;
use crate::handover::{self, Handover};
use crate::manager::{Manager, ManagerError, Startup, StoreState};
use crate::tenants;

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
    /// Read the configuration, write what holds by it as JSON, and end.
    #[arg(long)]
    pub check_config: bool,
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
    /// The API for tenants cannot be served.
    #[error(transparent)]
    Tenants(#[from] TenantApiError),
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

/// How it stands at first, for a service manager.
const OPENING: &str = "opening the store";

/// Closes of what callers handed over that wait for somebody at a time, before all others wait as well.
const CLOSING: usize = 32;
/// For threads that are at something when all else is done.
const LAST_THREADS: Duration = Duration::from_secs(10);

/// Runs the daemon to its end. 0 after a shutdown, 1 after a failure, 2 for a bad configuration,
/// 101 after a panic.
pub fn main(arguments: &Arguments) -> ExitCode {
    if arguments.check_config {
        return check_config(&arguments.config);
    }
    let _log = start_log(arguments.log_format);
    end_on_panic(None);
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
    end_on_panic(Some(config.runtime_dir.clone()));
    foreign_descriptors::start(CLOSING).map_err(DaemonError::Runtime)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let served = runtime.block_on(serve(config));
    // A thread of ours may wait for somebody who does not answer.
    runtime.shutdown_timeout(LAST_THREADS);
    served
}

/// 0 for a configuration that a manager can be started with, else 2.
fn check_config(path: &Path) -> ExitCode {
    let shown = match Config::load_for_its_manager(path) {
        Ok(config) => config.shown(),
        Err(error) => {
            complain(format_args!("vtpm-managerd: {}", WithCauses(&error)));
            return ExitCode::from(2);
        }
    };
    let written = (shown.map_err(Into::into)).and_then(|shown| print(&format!("{shown}\n")));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!(
                "vtpm-managerd: standard output cannot be written: {error}"
            ));
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), DaemonError> {
    let ending = ending_on_signals()?;
    let path = config.socket.clone();
    let startup = Startup::begin(config).await?;
    let listener = api::listen(&path).map_err(|source| DaemonError::Socket {
        path: path.clone(),
        source,
    })?;
    let socket = startup.config().swtpm_socket();
    let handover = Handover::listen(&socket).map_err(|source| DaemonError::Socket {
        path: socket.clone(),
        source,
    })?;
    let tenants = match &startup.config().tenants {
        Some(settings) => Some((tenants::bind(settings).await?, settings.certificate.clone())),
        None => None,
    };
    let api = Arc::new(Api::of_starting(&startup));
    let server = tokio::spawn({
        let (api, ending) = (Arc::clone(&api), ending.clone());
        async move { api.serve(listener, ending).await }
    });
    tracing::info!(socket = %path.display(), "listening, and opening the store");
    notify(&[NotifyState::Ready, NotifyState::Status(OPENING)]);
    let served = open_and_serve(startup, &api, handover, tenants, &ending).await;
    notify(&[NotifyState::Stopping]);
    ending.cancel();
    if let Err(error) = server.await {
        tracing::error!(%error, "the API ended early");
    }
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(%error, "the API's socket is left behind");
    }
    match served? {
        Some(manager) => Ok(manager.close().await?),
        None => Ok(()),
    }
}

/// Serves until `ending` is cancelled; the manager, if there is one by then.
async fn open_and_serve(
    startup: Startup,
    api: &Api,
    handover: handover::Listener,
    tenants: Option<(Bound, ServerCertificate)>,
    ending: &CancellationToken,
) -> Result<Option<Arc<Manager>>, DaemonError> {
    let Some(opened) = ending.run_until_cancelled(startup.open()).await else {
        end_at_last();
        return Ok(None);
    };
    let manager = opened?;
    api.serve_from(&manager);
    let handover = Handover::of(&manager).serve(handover, ending.clone());
    let handover = tokio::spawn(handover);
    let tenants = match tenants {
        Some((bound, certificate)) => {
            let serving = tenants::serve(bound, &certificate, &manager, ending.clone())?;
            Some(tokio::spawn(serving))
        }
        None => None,
    };
    if ending
        .run_until_cancelled(manager.start_serving())
        .await
        .is_some()
    {
        let vrots = manager.fleet().registry().all().len();
        tracing::info!(vrots, "ready");
        let store = manager.guarded().watch_store_state();
        ending.run_until_cancelled(tell_of_store(store)).await;
        ending.cancelled().await;
    }
    manager.events().end();
    manager.end_within(ENDING);
    end_at_last();
    if let Err(error) = handover.await {
        tracing::error!(%error, "the socket for swtpm ended early");
    }
    if let Some(tenants) = tenants
        && let Err(error) = tenants.await
    {
        tracing::error!(%error, "the API for tenants ended early");
    }
    Ok(Some(manager))
}

/// Tells a service manager how the store stands, whenever that changes.
async fn tell_of_store(mut store: watch::Receiver<StoreState>) {
    let mut told = OPENING;
    loop {
        let status = match *store.borrow_and_update() {
            StoreState::Open(_) => "serving",
            StoreState::Opening { .. } => OPENING,
            StoreState::Blank | StoreState::Unreachable { .. } | StoreState::Refused { .. } => {
                "serving, but the store is not open: `vtpmctl host show` tells why"
            }
        };
        if status != told {
            notify(&[NotifyState::Status(status)]);
            told = status;
        }
        if store.changed().await.is_err() {
            return;
        }
    }
}

/// Tells a service manager, if there is one, how it stands (sd_notify(3)).
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager is not told how it stands");
    }
}

/// Cancelled when somebody asks the daemon to end.
fn ending_on_signals() -> Result<CancellationToken, DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signal)?;
    let ending = CancellationToken::new();
    let ends = ending.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down; running vRoTs go on");
        ends.cancel();
    });
    Ok(ending)
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

/// A panic, in whichever task or thread, leaves a manager in an unknown state. It ends as if it had been killed, which it is made for: running vRoTs go on, and the next
/// manager, which the service manager starts, takes them over and tells what happened, if there is
/// a runtime folder to note it in. Nothing is cleaned up, because that could wait for what is not
/// there any more.
fn end_on_panic(runtime_dir: Option<PathBuf>) {
    log::on_panic(move |place| {
        if let Some(folder) = &runtime_dir {
            Fault::note(folder, place);
        }
        log::flush();
        end_at_once(PANICKED);
    });
}

#[expect(unsafe_code, reason = "no library ends a process without cleaning up")]
fn end_at_once(status: i32) {
    // SAFETY: it ends the process, and touches nothing in it.
    unsafe { nix::libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread;

    use anyhow::{Context, ensure};

    use super::*;

    /// How this test, run once more, knows that it is the one that panics, and where.
    const PANIC_IN: &str = "VTPM_MANAGER_TEST_PANIC_IN";
    const FOLDER: &str = "VTPM_MANAGER_TEST_FOLDER";
    const NAME: &str =
        "daemon::tests::a_panic_in_any_task_or_thread_ends_the_daemon_and_is_told_to_the_next";

    #[test]
    fn a_panic_in_any_task_or_thread_ends_the_daemon_and_is_told_to_the_next() -> anyhow::Result<()>
    {
        if let (Some(kind), Some(folder)) = (std::env::var_os(PANIC_IN), std::env::var_os(FOLDER)) {
            return panic_in(&kind.to_string_lossy(), folder.into());
        }
        for kind in ["task", "blocking", "thread", "job"] {
            let folder = tempfile::tempdir()?;
            let ended = Command::new(std::env::current_exe()?)
                .args([NAME, "--exact", "--nocapture"])
                .env(PANIC_IN, kind)
                .env(FOLDER, folder.path())
                .stdin(Stdio::null())
                .output()?;
            let said = String::from_utf8(ended.stderr)?;
            assert_eq!(ended.status.code(), Some(PANICKED), "{kind}: {said}");
            let out = String::from_utf8(ended.stdout)?;
            ensure!(!out.contains("test result"), "{kind}: it went on: {out}");
            ensure!(said.contains("it panicked"), "{kind}: {said}");
            ensure!(said.contains("injected"), "{kind}: {said}");
            let fault = Fault::take(folder.path()).context("a note")?;
            ensure!(fault.place.contains("daemon.rs"), "{fault:?}");
        }
        Ok(())
    }

    /// Panics where a manager works, and waits for what comes of it, but not for ever.
    fn panic_in(kind: &str, folder: PathBuf) -> anyhow::Result<()> {
        let _log = start_log(LogFormat::Text);
        end_on_panic(Some(folder));
        let fail = || -> () { panic!("injected") };
        let runtime = tokio::runtime::Runtime::new()?;
        match kind {
            "task" => drop(runtime.spawn(async move { fail() })),
            "blocking" => drop(runtime.spawn_blocking(fail)),
            "thread" => drop(thread::spawn(fail)),
            // What somebody waits for, who would take the panic for a failure.
            _ => drop(runtime.block_on(runtime.spawn(async move { fail() }))),
        }
        thread::sleep(Duration::from_secs(30));
        Ok(())
    }
}
