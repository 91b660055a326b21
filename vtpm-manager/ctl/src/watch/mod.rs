//! Follows what happens to vRoTs: one line for each event, also beyond a restart of the manager.

mod lines;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use api_types::WithCauses;
use api_types::wire::EventLine;
use http_body_util::BodyExt;
use program_output::console::complain;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::arguments::WatchArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Output;

use lines::Lines;
use show::Shower;

const EVENTS: &str = "/v1/events";
/// Three times the pause between two signs of life.
const SILENCE: Duration = Duration::from_secs(45);
/// Between two attempts to reach a manager that went away.
const PAUSE: Duration = Duration::from_millis(500);

/// What is known of the stream.
#[derive(Debug, Default)]
struct Position {
    /// Which start of the manager it is of, once it has told.
    manager: Option<Uuid>,
    /// Number of the last event that was told.
    last: Option<u64>,
}

/// Why a stream is not followed any more.
enum End {
    /// The manager went away, or said something else than events.
    Broken(CtlError),
    /// The manager is ending.
    OfManager,
    /// Nobody reads the output.
    Unread,
}

/// Follows until somebody ends this program, or nobody reads what it writes.
pub(crate) fn run(
    arguments: &WatchArguments,
    client: &Client,
    output: &Output,
) -> Result<ExitCode, CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CtlError::Response(error.into()))?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CtlError::Output)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(CtlError::Output)?;
        tokio::select! {
            ended = follow(arguments, client, output) => ended?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn follow(
    arguments: &WatchArguments,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let shower = Shower::new(arguments, output);
    let mut position = Position {
        manager: None,
        last: arguments.earlier.then_some(0),
    };
    let mut is_told = false;
    loop {
        match once(client, &shower, &mut position, &mut is_told).await? {
            End::Unread => return Ok(()),
            // The first answer decides whether there is anything to follow.
            End::Broken(error) if position.manager.is_none() && !error.is_opening() => {
                return Err(error);
            }
            End::Broken(error) if !is_told => {
                complain(format_args!("vtpmctl: {}: waiting …", WithCauses(&error)));
                is_told = true;
            }
            End::OfManager if !is_told => {
                complain(format_args!("vtpmctl: the manager has ended: waiting …"));
                is_told = true;
            }
            End::Broken(_) | End::OfManager => {}
        }
        sleep(PAUSE).await;
    }
}

/// Follows one stream to its end.
async fn once(
    client: &Client,
    shower: &Shower<'_>,
    position: &mut Position,
    is_told: &mut bool,
) -> Result<End, CtlError> {
    let mut body = match client.follow(&position.query()).await {
        Ok(body) => body,
        Err(error) => return Ok(End::Broken(error)),
    };
    let mut lines = Lines::default();
    loop {
        let frame = match timeout(SILENCE, body.frame()).await {
            Ok(None) => return Ok(End::OfManager),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Ok(End::Broken(CtlError::Response(error.into()))),
            Err(_) => return Ok(End::Broken(CtlError::Silent { time: SILENCE })),
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        lines.add(&data).map_err(CtlError::Response)?;
        while let Some(text) = lines.next() {
            if text.is_empty() {
                // A sign of life: a good moment to look for one of whoever reads.
                if shower.is_unread() {
                    return Ok(End::Unread);
                }
                continue;
            }
            let line: EventLine = crate::client::parse(text.as_bytes())?;
            let before = position.note(&line);
            *is_told = false;
            if !shower.show(&line, &text, before)? {
                return Ok(End::Unread);
            }
        }
    }
}

impl Position {
    fn query(&self) -> String {
        match (self.last, self.manager) {
            (None, _) => EVENTS.to_owned(),
            (Some(last), None) => format!("{EVENTS}?after={last}"),
            (Some(last), Some(manager)) => format!("{EVENTS}?after={last}&manager={manager}"),
        }
    }

    /// Notes a line. For the first line of another manager: the last event of the one before.
    fn note(&mut self, line: &EventLine) -> Option<u64> {
        match line {
            EventLine::Hello { manager, next, .. } => {
                let is_other = self
                    .manager
                    .replace(*manager)
                    .is_some_and(|one| one != *manager);
                let before = self.last.filter(|_| is_other);
                if is_other {
                    self.last = Some(0);
                } else if self.last.is_none() {
                    self.last = Some(next.saturating_sub(1));
                }
                before
            }
            EventLine::Missed { to, .. } => {
                self.last = Some(*to);
                None
            }
            EventLine::Event(event) => {
                self.last = Some(event.number);
                None
            }
        }
    }
}
