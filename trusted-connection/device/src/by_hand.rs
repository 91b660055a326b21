//! `vrot-device connect`: a look at a service, and a conversation with it by hand.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use attested_tls::tls::{ParameterNames, is_hybrid};
use attested_tls::{Attested, AttestedStream, ConnectionError};
use clap::Args;
use printable::{Printable, WithCauses, printable_json};
use program_output::console::{complain, print};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::connection::{Appraised, ConnectError, NotAccepted, ServiceAddress, changes};
use crate::connection_options::ConnectionOptions;
use crate::judgement::Judgement;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::tree::{Colour, draw};

/// What to connect to, and what for.
#[derive(Debug, Args)]
pub struct Connect {
    /// Where the service listens.
    #[arg(value_name = "HOST:PORT")]
    service: ServiceAddress,
    #[command(flatten)]
    options: ConnectionOptions,
    /// Say what the service is, and close the connection.
    #[arg(long)]
    verdict_only: bool,
    /// Say what the service is as JSON (an EAT attestation result, and the connection's parameters).
    #[arg(long)]
    json: bool,
}

impl Connect {
    /// Connects, says what the service is, and passes data until both ends have sent theirs.
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        let connector = self.options.connector(settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no connection can be waited for")?;
        let outcome = runtime.block_on(async {
            match connector.connect(&self.service).await {
                Ok(attested) => self.talk(attested).await,
                Err(error) => self.not_connected(error),
            }
        });
        // A thread may still wait for standard input.
        runtime.shutdown_background();
        outcome
    }

    fn not_connected(&self, error: ConnectError) -> Result<Outcome> {
        match &error {
            ConnectError::NotAccepted { why, .. } => match &**why {
                NotAccepted::Judged(judgement) => self.tell(judgement, None)?,
                NotAccepted::Malformed(_) => return Err(error.into()),
                // It is evidence, and the connection is not what it or the policy asks for.
                _ => complain(format_args!("vrot-device: {}", WithCauses(&error))),
            },
            _ => return Err(error.into()),
        }
        Ok(Outcome::NotAffirming)
    }

    async fn talk(&self, attested: Attested<Appraised>) -> Result<Outcome> {
        let Attested {
            stream,
            peer,
            appraisal,
            appraisals,
        } = attested;
        let judgement = Judgement::Appraised(Arc::clone(&appraisal));
        self.tell(&judgement, Some(&ParametersTold::of(&peer.parameters)))?;
        if !self.verdict_only {
            let told = tell_changes(appraisal, appraisals);
            tokio::select! {
                passed = pass(stream) => match passed {
                    Ok(()) => {}
                    Err(error) if is_about_trust(&error) => {
                        complain(format_args!("vrot-device: {}", WithCauses(error.as_ref())));
                        return Ok(Outcome::NotAffirming);
                    }
                    Err(error) => return Err(error),
                },
                never = told => match never {},
            }
        }
        Ok(judgement.verdict().into())
    }

    /// The result goes to standard output if it is all that is asked for; otherwise that has the
    /// service's data.
    fn tell(&self, judgement: &Judgement, parameters: Option<&ParametersTold>) -> Result<()> {
        let (out, err) = (io::stdout(), io::stderr());
        let is_terminal = match self.verdict_only {
            true => out.is_terminal(),
            false => err.is_terminal(),
        };
        let text = if self.json {
            let mut told = judgement.to_json();
            if let (Some(claims), Some(parameters)) = (told.as_object_mut(), parameters) {
                claims.insert("connection".to_owned(), parameters.to_json(&self.service));
            }
            printable_json(&format!("{told:#}\n"))
        } else {
            let plain = std::env::var_os("NO_COLOR").is_some() || !is_terminal;
            let colour = if plain { Colour::Plain } else { Colour::Ansi };
            let begin = parameters.map(|parameters| parameters.to_text(&self.service));
            begin.unwrap_or_default() + &draw(judgement, colour)
        };
        if self.verdict_only {
            return print(&text).context("the result cannot be written to standard output");
        }
        err.lock()
            .write_all(text.as_bytes())
            .context("the result cannot be written to standard error")
    }
}

/// What is said of a connection beside the verdict.
struct ParametersTold {
    names: ParameterNames,
    hybrid: bool,
}

impl ParametersTold {
    fn of(parameters: &attestation::connection::TlsParameters) -> Self {
        Self {
            names: ParameterNames::of(parameters),
            hybrid: is_hybrid(parameters),
        }
    }

    fn to_text(&self, service: &ServiceAddress) -> String {
        format!(
            "Connected to {} with {} ({} key exchange).\n\n",
            Printable(&service.to_string()),
            self.names,
            if self.hybrid { "hybrid" } else { "classical" },
        )
    }

    fn to_json(&self, service: &ServiceAddress) -> Value {
        json!({
            "service": service.to_string(),
            "version": self.names.version,
            "suite": self.names.suite,
            "group": self.names.group,
            "hybrid": self.hybrid,
        })
    }
}

/// Says what later rounds of attestation find changed.
async fn tell_changes(
    mut before: Appraised,
    mut appraisals: watch::Receiver<Option<Appraised>>,
) -> std::convert::Infallible {
    while appraisals.changed().await.is_ok() {
        let Some(after) = appraisals.borrow_and_update().clone() else {
            continue;
        };
        for change in changes(&before, &after) {
            complain(format_args!("vrot-device: {change}"));
        }
        before = after;
    }
    std::future::pending().await
}

/// Passes standard input to the service and what it sends to standard output. When the service has
/// sent all its data, or both have, that is the end.
async fn pass(stream: AttestedStream) -> Result<()> {
    let mut input = standard(io::stdin())?;
    let mut output = standard(io::stdout())?;
    let (mut from, mut to) = tokio::io::split(stream);
    pass_both(&mut input, &mut to, &mut from, &mut output).await?;
    let mut stream = from.unsplit(to);
    (stream.shutdown().await).context("the service takes no data")?;
    (stream.ended().await).context("the connection did not end as it should")
}

/// Passes data in both directions, until the service has sent all its own.
async fn pass_both(
    input: &mut tokio::fs::File,
    to: &mut (impl AsyncWrite + Unpin),
    from: &mut (impl AsyncRead + Unpin),
    output: &mut tokio::fs::File,
) -> Result<()> {
    let upward = async {
        tokio::io::copy(input, to)
            .await
            .context("standard input cannot be passed to the service")?;
        to.shutdown().await.context("the service takes no data")
    };
    let downward = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = (from.read(&mut buffer).await).context("the service's data broke off")?;
            let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else {
                return anyhow::Ok(());
            };
            let written = async {
                output.write_all(read).await?;
                output.flush().await
            };
            (written.await).context("the service's data cannot be written to standard output")?;
        }
    };
    tokio::pin!(downward);
    tokio::select! {
        ended = &mut downward => ended?,
        sent = upward => {
            sent?;
            downward.await?;
        }
    }
    Ok(())
}

/// A standard stream, read and written where it keeps nothing else waiting.
fn standard(stream: impl AsFd) -> Result<tokio::fs::File> {
    let descriptor =
        (stream.as_fd().try_clone_to_owned()).context("a standard stream is closed")?;
    Ok(tokio::fs::File::from_std(File::from(descriptor)))
}

/// Whether the connection ended because the service is not trusted any more.
fn is_about_trust(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let of_stream = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<Arc<ConnectionError>>());
        let ended = cause.downcast_ref::<Arc<ConnectionError>>();
        of_stream.or(ended).is_some_and(|error| {
            matches!(
                **error,
                ConnectionError::Refused(_) | ConnectionError::AppraisalEnded
            )
        })
    })
}
