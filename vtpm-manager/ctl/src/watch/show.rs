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
        let Some(shown) = self.shown(line, text, before) else {
            return Ok(true);
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{shown}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(CtlError::Output(error)),
        }
    }

    /// What is written of a line; nothing of what nobody asked for.
    fn shown(&self, line: &EventLine, text: &str, before: Option<u64>) -> Option<String> {
        Some(match line {
            EventLine::Event(event) if !self.is_asked_for(event) => return None,
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
                None => return None,
            },
        })
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

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    const VM: &str = "00000000-0000-4000-8000-000000000001";
    const VROT: &str = "00000000-0000-4000-8000-000000000002";

    /// Whether what happened to a VM of `acme`, and what happened to the host, is shown to who asked for
    /// these.
    fn shown(vms: &[&str], tenants: &[&str]) -> Result<(bool, bool)> {
        let vm = vms.iter().map(|vm| Ok(vm.parse()?));
        let tenant = tenants.iter().map(|tenant| Ok(tenant.parse()?));
        let arguments = WatchArguments {
            vm: vm.collect::<Result<_>>()?,
            tenant: tenant.collect::<Result<_>>()?,
            earlier: false,
        };
        let shower = Shower {
            arguments: &arguments,
            is_json: true,
        };
        let event = |of: &str, kind: &str| -> Result<bool> {
            let at = "2026-11-28T19:15:00Z";
            let text = format!(r#"{{"number":1,"at":"{at}","kind":"{kind}"{of}}}"#);
            let line: EventLine = serde_json::from_str(&text)?;
            Ok(shower.shown(&line, &text, None).is_some())
        };
        let of_vm = format!(r#","vm":"{VM}","vrot":"{VROT}","tenant":"acme""#);
        Ok((event(&of_vm, "started")?, event("", "host-restarted")?))
    }

    #[test]
    fn what_was_asked_for_is_shown_and_what_concerns_the_host_to_everybody() -> Result<()> {
        let other = "00000000-0000-4000-8000-000000000003";
        for (vms, tenants, is_shown) in [
            (&[][..], &[][..], true),
            (&[VM], &[], true),
            (&[VROT], &[], true),
            (&[other, VM], &[], true),
            (&[], &["other", "acme"], true),
            (&[VM], &["acme"], true),
            (&[other], &[], false),
            (&[], &["other"], false),
            (&[other], &["acme"], false),
            (&[VM], &["other"], false),
        ] {
            assert_eq!(
                shown(vms, tenants)?,
                (is_shown, true),
                "{vms:?} {tenants:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn what_was_missed_is_told_to_people_and_programs() -> Result<()> {
        let arguments = WatchArguments {
            vm: vec![VM.parse()?],
            tenant: Vec::new(),
            earlier: false,
        };
        let text = r#"{"kind":"missed","from":6,"to":8}"#;
        let line: EventLine = serde_json::from_str(text)?;
        for (is_json, told) in [(true, text), (false, "events 6 to 8 were missed")] {
            let shower = Shower {
                arguments: &arguments,
                is_json,
            };
            let shown = shower.shown(&line, text, None).unwrap_or_default();
            assert!(shown.contains(told), "{shown}");
        }
        Ok(())
    }
}
