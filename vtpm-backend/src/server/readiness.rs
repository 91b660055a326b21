//! Waiting until a socket can be read, or a deadline has passed.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Server;
use super::device::DeviceSocket;
use super::peers::has_command;
use crate::engine::Engine;
use crate::managed::ManagerLink;
use crate::sockets::{Arrival, Connection};

/// What can be read from now.
pub(super) struct Ready {
    /// Whether everybody but the manager had to wait.
    pub(super) held: bool,
    pub(super) termination: bool,
    pub(super) manager: bool,
    pub(super) background: bool,
    pub(super) control_listener: bool,
    pub(super) host_listener: bool,
    pub(super) control: bool,
    pub(super) data: bool,
    pub(super) host: bool,
    pub(super) device_listener: bool,
    pub(super) device_connection: bool,
    pub(super) device_queue: bool,
}

impl Ready {
    /// A command of the guest, before the others are looked at.
    pub(super) const COMMAND: Self = Self {
        held: false,
        termination: false,
        manager: false,
        background: false,
        control_listener: false,
        host_listener: false,
        control: false,
        data: true,
        host: false,
        device_listener: false,
        device_connection: false,
        device_queue: false,
    };

    /// The same by a queue.
    pub(super) const REQUEST: Self = Self {
        data: false,
        device_queue: true,
        ..Self::COMMAND
    };

    /// Whether only time has passed.
    pub(super) fn is_nothing(&self) -> bool {
        !(self.termination
            || self.manager
            || self.background
            || self.control_listener
            || self.host_listener
            || self.control
            || self.data
            || self.host
            || self.device_listener
            || self.device_connection
            || self.device_queue)
    }
}

/// How many sockets and the like there may be.
const SOURCES: usize = 12;
/// How often stalled peers are looked for.
const TICK_MS: u8 = 100;
/// How often a state that could not be saved is tried again while nobody sends commands.
const RETRY_MS: u16 = 1000;

impl<E: Engine> Server<E> {
    /// The next command of a guest that was just answered, if it is here and nobody else has to be
    /// looked at first.
    pub(super) fn next_command(&mut self) -> Option<Ready> {
        if !self.polling.take_answered()
            || self.held_until.is_some()
            || foreign_descriptors::is_behind()
        {
            return None;
        }
        let data = self.vmm.as_mut().and_then(|vmm| vmm.data.as_mut());
        let (is_here, ready) = match (data, &self.device) {
            // What failed or ended does so again when it is read in its turn.
            (Some(data), _) => {
                let is_here = has_command(data)
                    || self
                        .polling
                        .wait_for(|| matches!(data.read(), Ok(Arrival::Bytes)));
                (is_here, Ready::COMMAND)
            }
            (None, Some(device)) => {
                let is_here = self.polling.wait_for(|| device.is_offered_request());
                (is_here, Ready::REQUEST)
            }
            (None, None) => return None,
        };
        let is_next = is_here && !self.polling.must_look_around();
        is_next.then_some(ready)
    }

    /// Waits until somebody can be read from.
    pub(super) fn look_around(&mut self) -> io::Result<Ready> {
        let ready = self.wait();
        self.polling.looked_around();
        ready
    }

    fn wait(&self) -> io::Result<Ready> {
        let [manager_listener, manager] = self.keeper.sockets();
        let vmm = self.vmm.as_ref();
        let data = vmm.and_then(|vmm| vmm.data.as_ref());
        let device = self.device.as_ref();
        let kick = device.and_then(DeviceSocket::kick);
        let sources = [
            Some(self.termination.as_fd()),
            manager_listener,
            manager,
            self.engine.over(),
            self.waiting_vmm().map(AsFd::as_fd),
            self.waiting_host().map(AsFd::as_fd),
            vmm.map(|vmm| vmm.control.as_fd()),
            data.map(AsFd::as_fd),
            self.host.as_ref().map(AsFd::as_fd),
            self.waiting_device().map(AsFd::as_fd),
            device.and_then(DeviceSocket::connection),
            kick.as_ref().map(AsFd::as_fd),
        ];
        // What comes from those that have to wait stays where it is.
        let behind = foreign_descriptors::is_behind();
        let held = behind || self.held_until.is_some();
        let sources = match sources {
            [end, listener, manager, ..] if held => {
                let mut sources = [None; SOURCES];
                for (place, source) in sources.iter_mut().zip([end, listener, manager]) {
                    *place = source;
                }
                sources
            }
            sources => sources,
        };
        let is_incomplete = !held && device.is_some_and(DeviceSocket::is_incomplete);
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(SOURCES);
        let all = sources.iter().flatten();
        polled.extend(all.map(|source| PollFd::new(*source, PollFlags::POLLIN)));
        let manager = self.keeper.manager();
        let waiting = manager.is_some_and(ManagerLink::has_waiting);
        // A command that has arrived makes its socket readable no more.
        let has_command =
            |connection: Option<&Connection>| !held && connection.is_some_and(has_command);
        let (data_waits, host_waits) = (has_command(data), has_command(self.host.as_ref()));
        let request_waits = !held && device.is_some_and(DeviceSocket::has_request);
        let timeout = if waiting || data_waits || host_waits || request_waits {
            PollTimeout::ZERO
        } else if behind {
            PollTimeout::from(TICK_MS)
        } else if let Some(until) = self.held_until {
            // Rounded up, so as not to poll in vain.
            let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO)
        } else if self.has_incomplete() {
            PollTimeout::from(TICK_MS)
        } else if self.keeper.wants_retry() || self.has_log_waiting() {
            PollTimeout::from(RETRY_MS)
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
            termination,
            manager_listener,
            manager,
            background,
            control_listener,
            host_listener,
            control,
            data,
            host,
            device_listener,
            device_connection,
            device_queue,
        ] = sources.map(|source| source.is_some() && readable.next().unwrap_or(false));
        Ok(Ready {
            held,
            termination,
            manager: manager_listener || manager || waiting,
            background,
            control_listener,
            host_listener,
            control,
            data: data || data_waits,
            host: host || host_waits,
            device_listener,
            device_connection: device_connection || is_incomplete,
            device_queue: device_queue || request_waits,
        })
    }
}
