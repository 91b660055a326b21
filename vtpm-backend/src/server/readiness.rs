//! Waiting for whoever has something to say.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Keeper, Server};
use crate::engine::Engine;

/// What can be read from now.
pub(super) struct Ready {
    pub(super) manager: bool,
    pub(super) control_listener: bool,
    pub(super) host_listener: bool,
    pub(super) control: bool,
    pub(super) data: bool,
    pub(super) host: bool,
}

/// How often stalled peers are looked for.
const TICK_MS: u8 = 100;

impl<E: Engine> Server<E> {
    pub(super) fn wait(&self) -> io::Result<Ready> {
        let (manager_listener, manager) = match &self.keeper {
            Keeper::Folder(_) => (None, None),
            Keeper::Manager(link) => (Some(link.listener().as_fd()), link.connection()),
        };
        let sources = [
            manager_listener,
            manager.map(AsFd::as_fd),
            self.vmm_listener().map(AsFd::as_fd),
            self.host_listener.as_ref().map(AsFd::as_fd),
            self.control.as_ref().map(AsFd::as_fd),
            self.data.as_ref().map(AsFd::as_fd),
            self.host.as_ref().map(AsFd::as_fd),
        ];
        // What comes from those that have to wait stays where it is.
        let sources = match (self.held_until, sources) {
            (Some(_), [listener, manager, ..]) => [listener, manager, None, None, None, None, None],
            (None, sources) => sources,
        };
        let mut polled: Vec<PollFd<'_>> = sources
            .iter()
            .flatten()
            .map(|source| PollFd::new(*source, PollFlags::POLLIN))
            .collect();
        let waiting = matches!(&self.keeper, Keeper::Manager(link) if link.has_waiting());
        let timeout = if waiting {
            PollTimeout::ZERO
        } else if let Some(until) = self.held_until {
            // Rounded up, so as not to poll in vain.
            let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO)
        } else if self.has_incomplete() {
            PollTimeout::from(TICK_MS)
        } else {
            PollTimeout::NONE
        };
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut readable = polled
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        let [
            manager_listener,
            manager,
            control_listener,
            host_listener,
            control,
            data,
            host,
        ] = sources.map(|source| source.is_some() && readable.next().unwrap_or(false));
        Ok(Ready {
            manager: manager_listener || manager || waiting,
            control_listener,
            host_listener,
            control,
            data,
            host,
        })
    }
}
