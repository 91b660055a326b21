//! `vrot-tenant watch`: a line for each event.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use printable::{Printable, printable_json};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;

use crate::events::Position;
use crate::outcome::{Outcome, Output};
use crate::tenant::Tenant;
use crate::{json, show};

/// How often is looked whether anybody reads on.
const LOOK: Duration = Duration::from_secs(5);

/// Until it is interrupted, or nobody reads what it writes.
pub(crate) async fn run(tenant: &Tenant, earlier: bool, output: Output) -> Result<Outcome> {
    let position = match earlier {
        true => Position::of_all(),
        false => Position::default(),
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut watch = tenant.watch(position);
    let mut look = interval(LOOK);
    loop {
        let told = tokio::select! {
            told = watch.next() => told,
            _ = look.tick() => match is_unread() {
                true => return Ok(Outcome::Good),
                false => continue,
            },
            _ = interrupt.recv() => return Ok(Outcome::Good),
            _ = terminate.recv() => return Ok(Outcome::Good),
        };
        let Some(told) = told else {
            return Ok(Outcome::Good);
        };
        let line = match output {
            Output::Json => printable_json(&json::happening(&told).to_string()),
            Output::Text => Printable(&show::happening(&told)).to_string(),
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Outcome::Good),
            Err(error) => return Err(error).context("events cannot be written to standard output"),
        }
    }
}

/// Whether whoever read the output has gone.
fn is_unread() -> bool {
    let out = io::stdout();
    let mut state = [PollFd::from_borrowed_fd(out.as_fd(), PollFlags::empty())];
    let now = rustix::event::Timespec::default();
    let polled = poll(&mut state, Some(&now));
    let [state] = state;
    polled.is_ok() && state.revents().contains(PollFlags::ERR)
}
