//! `vrot-device proxy`: any program can use attested connections to a service.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use attested_tls::Attested;
use attested_tls::tls::ParameterNames;
use clap::{Args, ValueEnum};
use connection_proxy::{
    Accepted, Handler, Limits, Stop, allow_open_files, join, prepare, ready, reload_at_hangup,
    serve,
};
use printable::WithCauses;
use program_output::log::{self, ACCEPTED};
use tokio::net::{TcpListener, TcpStream};
use tracing_subscriber::filter::LevelFilter;

use crate::connection::{Appraised, ConnectError, Connector, ServiceAddress};
use crate::connection_options::ConnectionOptions;
use crate::outcome::Outcome;
use crate::settings::Settings;

/// Where to listen, and what to connect to.
#[derive(Debug, Args)]
pub struct Proxy {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where the service listens.
    #[arg(long, value_name = "HOST:PORT")]
    connect: ServiceAddress,
    #[command(flatten)]
    options: ConnectionOptions,
    /// Listen on an address that other machines can reach. Whoever does uses this device's connections,
    /// and is to the service whoever this device is; between them and the proxy nothing is encrypted.
    #[arg(long)]
    serve_other_machines: bool,
    /// Connections at a time; those beyond are closed at once.
    #[arg(long, value_name = "NUMBER", default_value = "4096")]
    connections: NonZeroUsize,
    /// Those of one peer: an IPv4 address, or an IPv6 network of 64 bits. Without it as many as of all.
    #[arg(long, value_name = "NUMBER")]
    connections_per_peer: Option<NonZeroUsize>,
    /// How long open connections may go on after SIGTERM or SIGINT; a second signal closes them at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// How the log looks.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Proxy {
    /// Serves until a signal ends it.
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        if !self.listen.ip().is_loopback() && !self.serve_other_machines {
            bail!(
                "{} can be reached from other machines, and whoever reaches it uses this device's \
                 connections: listen on 127.0.0.1 or [::1], or give --serve-other-machines",
                self.listen
            );
        }
        let attester = self.options.attester()?;
        let connector = self.options.connector_with(attester.clone(), settings)?;
        let format = match self.log_format {
            LogFormat::Text => log::Format::Text,
            LogFormat::Json => log::Format::Json,
        };
        let _log = log::start(LevelFilter::INFO, format);
        log::on_panic(|_| {});
        let limits = Limits {
            connections: self.connections.get(),
            of_a_peer: self.connections_per_peer.unwrap_or(self.connections).get(),
        };
        allow_open_files(&[limits]);
        let runtime = tokio::runtime::Runtime::new().context("no threads can be started")?;
        runtime.block_on(async {
            let stop = Stop::at_signals(Duration::from_secs(self.drain_seconds))
                .context("signals cannot be listened to")?;
            let listener = TcpListener::bind(self.listen)
                .await
                .with_context(|| format!("{} cannot be listened on", self.listen))?;
            let reloaded = connector.clone();
            let (options, settings) = (self.options.clone(), settings.clone());
            reload_at_hangup(move || {
                reloaded.replace(&options.connector_with(attester.clone(), &settings)?);
                tracing::info!(policy = %reloaded.policy().digest(), "the policy is read anew");
                Ok(())
            })
            .context("signals cannot be listened to")?;
            let listen = listener.local_addr()?;
            tracing::info!(%listen, service = %self.connect, policy = %connector.policy().digest(),
                "attested connections for whoever connects here");
            ready();
            let forwarding = Arc::new(Forwarding {
                connector,
                service: self.connect.clone(),
            });
            serve(listener, limits, &stop, forwarding).await;
            tracing::info!("stopped");
            Ok(Outcome::Good)
        })
    }
}

/// Gives each local connection an attested one of its own.
struct Forwarding {
    connector: Connector,
    service: ServiceAddress,
}

impl Handler for Forwarding {
    async fn handle(&self, connection: Accepted) {
        let Accepted {
            stream: local,
            mut place,
            stop,
            ..
        } = connection;
        // Local programs have nothing to show; so none gives way to another.
        if !place.keep() {
            return reset(local);
        }
        let attested = tokio::select! {
            biased;
            () = stop.closing() => return reset(local),
            attested = self.attest(&local) => attested,
        };
        match attested {
            Ok(attested) => {
                tell(&attested);
                join(attested.stream, local, &stop).await;
            }
            Err(error) => {
                tracing::warn!(error = %WithCauses(&error), "not connected");
                reset(local);
            }
        }
    }
}

impl Forwarding {
    async fn attest(&self, local: &TcpStream) -> Result<Attested<Appraised>, ConnectError> {
        if let Err(error) = prepare(local) {
            tracing::debug!(%error, "the local connection is used as it is");
        }
        self.connector.connect(&self.service).await
    }
}

fn tell(attested: &Attested<Appraised>) {
    let evidence = attested.appraisal.evidence();
    let tls = ParameterNames::of(&attested.peer.parameters);
    tracing::info!(
        target: ACCEPTED,
        vm = %evidence.leaf().vm,
        host = %evidence.chain().host(),
        verdict = %attested.appraisal.verdict(),
        %tls,
        "attested"
    );
}

/// A program that was told nothing else must not take this for the end of a service's data.
fn reset(local: TcpStream) {
    // If it cannot be reset, it is closed.
    let _ = local.set_zero_linger();
}
