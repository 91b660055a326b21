//! Events as people and programs read them.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use api_types::VrotKey;
use api_types::wire::{Event, EventLine};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use printable::{Printable, printable_json};

use crate::arguments::WatchArguments;
use crate::error::CtlError;
use crate::output::Output;

/// Writes lines, unless nobody asked for them.
pub(super) struct Shower<'a> {
    arguments: &'a WatchArguments,
    is_json: bool,
}

impl<'a> Shower<'a> {
    pub(super) fn new(arguments: &'a WatchArguments, output: &Output) -> Self {
        Self {
            arguments,
            is_json: output.is_json(),
        }
    }

    /// Writes a line; `text` is how it came, and `before` the last event of the manager before, if this
    /// is the first line of another one. Returns whether somebody reads on.
    pub(super) fn show(
        &self,
        line: &EventLine,
        text: &str,
        before: Option<u64>,
    ) -> Result<bool, CtlError> {
        let shown = match line {
            EventLine::Event(event) if !self.is_asked_for(event) => return Ok(true),
            _ if self.is_json => printable_json(text),
            EventLine::Event(event) => Printable(&for_people(event)).to_string(),
            EventLine::Missed { from, to } => {
                format!(
                    "--- events {from} to {to} were missed: the manager does not keep them any more"
                )
            }
            EventLine::Hello { manager, .. } => match before {
                Some(before) => format!(
                    "--- the manager was started again ({manager}): what happened to vRoTs between event \
                     {before} and its end is not told"
                ),
                None => return Ok(true),
            },
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{shown}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(CtlError::Output(error)),
        }
    }

    /// Whether whoever read the output has gone.
    pub(super) fn is_unread(&self) -> bool {
        let out = io::stdout();
        let mut state = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let polled = poll(&mut state, PollTimeout::ZERO);
        let [state] = state;
        let found = state.revents().unwrap_or(PollFlags::empty());
        polled.is_ok() && found.contains(PollFlags::POLLERR)
    }

    /// Events of the host concern everybody.
    fn is_asked_for(&self, event: &Event) -> bool {
        let WatchArguments { vm, tenant, .. } = self.arguments;
        let numbers = [
            event.vm.map(|vm| *vm.as_uuid()),
            event.vrot.map(|vrot| *vrot.as_uuid()),
        ];
        let is_one = |key: &VrotKey| numbers.contains(&Some(key.number()));
        let is_of_host = event.vm.is_none();
        let is_vm = vm.is_empty() || vm.iter().any(is_one);
        let is_tenant =
            tenant.is_empty() || event.tenant.as_ref().is_some_and(|of| tenant.contains(of));
        is_of_host || (is_vm && is_tenant)
    }
}

fn for_people(event: &Event) -> String {
    let mut text = format!("{}  {:<18}", event.at, event.kind.name());
    if let Some(vm) = &event.vm {
        text.push_str(&format!("  VM {vm}"));
    }
    if let Some(tenant) = &event.tenant {
        text.push_str(&format!("  {tenant}"));
    }
    if !event.details.is_empty() {
        text.push_str(&format!("  ({})", event.details));
    }
    text.trim_end().to_owned()
}
