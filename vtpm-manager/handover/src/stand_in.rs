//! The process that a VM's launcher takes for its swtpm. It stands for the vRoT: it has the process
//! number, the control group and the socket that the launcher expects, ends when the vRoT ends, and
//! its own end, however it comes, ends the vRoT.
//!
//! The manager may be restarted meanwhile: the vRoT and an attached VMM go on, and this process
//! reports to the next manager.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::channel::Channel;
use crate::error::HandoverError;
use crate::message::{FromManager, Lock, ToManager};
use crate::relay::{Passed, Relay};
use crate::set_up::{Vrot, connect, file_to_start, first, known, unexpected, vrot};

/// A vRoT that was started for a folder.
#[derive(Debug)]
pub struct StandIn {
    socket: PathBuf,
    /// Names the vRoT to the next manager, too.
    file: File,
    lock: Option<Lock>,
    line: Option<Channel>,
    /// Whether the manager at the other end has said that the vRoT runs.
    has_joined: bool,
    vrot: Vrot,
}

/// Where VMMs come from.
#[derive(Debug)]
pub enum VmmSocket {
    /// They connect here, one after the other.
    Listening(UnixListener),
    /// There is one, which is connected.
    Connected(UnixStream),
}

/// Why the process ends, with its vRoT stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A signal said so (SIGTERM, SIGINT).
    Signal,
    /// The VMM has gone, and it was to end with it.
    VmmGone,
    /// The VMM or a tool ordered the TPM to end (`CMD_SHUTDOWN`).
    ShutDown,
}

/// Between attempts to reach the next manager.
const REJOIN_PAUSE: Duration = Duration::from_millis(200);
/// What the stop of a vRoT may take whose state is durable in milliseconds. After that the manager
/// goes on by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What happened while it waited.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    signal: bool,
    line: bool,
    vmm: bool,
    relay: bool,
}

impl Ready {
    fn anything(self) -> bool {
        self.signal || self.line || self.vmm || self.relay
    }
}

/// What it is about.
struct Serving {
    vmms: Option<UnixListener>,
    signals: SignalFd,
    /// A VMM for which the manager was, or is to be, asked for a connection.
    waiting: Option<UnixStream>,
    relay: Option<Relay>,
    ends_with_vmm: bool,
}

impl StandIn {
    /// Has the manager start the vRoT of a folder. A folder that never had one gets one.
    /// `lock` is of the secret that the launcher gives, if it does.
    pub fn start(socket: &Path, folder: &Path, lock: Option<Lock>) -> Result<Self, HandoverError> {
        let file = file_to_start(socket, folder, lock)?;
        let (line, answer) = first(socket, &ToManager::Start { lock }, Some(file.as_fd()))?;
        let vrot = vrot(&known(answer)?, false);
        Ok(Self {
            socket: socket.to_owned(),
            file,
            lock,
            line: Some(line),
            has_joined: true,
            vrot,
        })
    }

    /// The vRoT.
    pub fn vrot(&self) -> Vrot {
        self.vrot
    }

    /// Serves VMMs until a signal, the end of the VMM, or the end of the vRoT. Without
    /// `ends_with_vmm` it goes on for the next VMM where one can come.
    pub fn serve(mut self, vmms: VmmSocket, ends_with_vmm: bool) -> Result<Ending, HandoverError> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        let failed = |error: nix::errno::Errno| HandoverError::Signals(error.into());
        signals.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).map_err(failed)?;
        let (vmms, waiting) = match vmms {
            VmmSocket::Listening(listener) => (Some(listener), None),
            VmmSocket::Connected(vmm) => (None, Some(vmm)),
        };
        if let Some(listener) = &vmms {
            (listener.set_nonblocking(true)).map_err(HandoverError::Listener)?;
        }
        let mut serving = Serving {
            ends_with_vmm: ends_with_vmm || vmms.is_none(),
            vmms,
            signals,
            waiting,
            relay: None,
        };
        if serving.waiting.is_some() {
            self.ask_for_connection();
        }
        loop {
            if let Some(ending) = self.serve_once(&mut serving)? {
                drop(serving);
                self.stop();
                return Ok(ending);
            }
        }
    }

    fn serve_once(&mut self, serving: &mut Serving) -> Result<Option<Ending>, HandoverError> {
        let ready = serving
            .wait(self.line.as_ref())
            .map_err(HandoverError::Listener)?;
        if ready.signal {
            return Ok(Some(Ending::Signal));
        }
        if ready.relay
            && let Some(relay) = &mut serving.relay
        {
            let passed = relay.pass();
            match passed {
                Passed::GoesOn => {}
                Passed::ShutDown => return Ok(Some(Ending::ShutDown)),
                Passed::VmmGone if serving.ends_with_vmm => return Ok(Some(Ending::VmmGone)),
                Passed::VmmGone | Passed::BackendGone => serving.relay = None,
            }
        }
        if ready.line {
            self.hear(serving)?;
        }
        if self.line.is_none() && !ready.anything() {
            self.rejoin();
        }
        if ready.vmm
            && serving.waiting.is_none()
            && let Some(vmm) = serving.accept()
        {
            serving.waiting = Some(vmm);
            self.ask_for_connection();
        }
        Ok(None)
    }

    /// Asks the manager for a connection; one that cannot be asked now is asked once it is there.
    fn ask_for_connection(&mut self) {
        if let Some(line) = self.line.as_ref().filter(|_| self.has_joined)
            && line.send(&ToManager::Attach, None).is_err()
        {
            self.line = None;
        }
    }

    fn hear(&mut self, serving: &mut Serving) -> Result<(), HandoverError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let Ok(Some(packet)) = line.receive() else {
            self.line = None;
            return Ok(());
        };
        let message = packet.message().map_err(HandoverError::Connection)?;
        if !self.has_joined {
            return self.joined(message, serving);
        }
        match (message, packet.descriptor, serving.waiting.take()) {
            (FromManager::Attached, Some(backend), Some(vmm)) => {
                let relay = Relay::between(vmm, UnixStream::from(backend.into_inner()));
                serving.relay = Some(relay.map_err(HandoverError::Listener)?);
                Ok(())
            }
            // The VMM has lost its connection, as by a swtpm that turns it away.
            (FromManager::Refused { .. }, _, Some(_)) => Ok(()),
            (other, _, _) => Err(unexpected(other)),
        }
    }

    /// Looks for the next manager. A VM that runs does not depend on it, and is not kept waiting for
    /// its answer.
    fn rejoin(&mut self) {
        self.has_joined = false;
        let Ok(line) = connect(&self.socket) else {
            return;
        };
        let sent = line.send(
            &ToManager::Rejoin { lock: self.lock },
            Some(self.file.as_fd()),
        );
        self.line = sent.is_ok().then_some(line);
    }

    fn joined(&mut self, answer: FromManager, serving: &Serving) -> Result<(), HandoverError> {
        if let FromManager::NotYet { .. } = answer {
            self.line = None;
            return Ok(());
        }
        known(answer)?;
        self.has_joined = true;
        if serving.waiting.is_some() {
            self.ask_for_connection();
        }
        Ok(())
    }

    /// Has the vRoT stopped. Where the manager cannot be told, it stops what nobody stands for.
    fn stop(self) {
        let Some(line) = self.line else { return };
        let _ = set_socket_timeout(&line, Timeout::Recv, Some(STOP_PATIENCE));
        if line.send(&ToManager::Stop, None).is_ok() {
            while let Ok(Some(packet)) = line.receive() {
                if matches!(packet.message(), Ok(FromManager::Attached)) {
                    continue;
                }
                return;
            }
        }
    }
}

impl Serving {
    /// Waits for whatever comes first. Without a line to the manager, only for a moment.
    fn wait(&self, line: Option<&Channel>) -> io::Result<Ready> {
        // One VMM at a time; the next one waits in the socket's queue, as with swtpm.
        let is_free = self.relay.is_none() && self.waiting.is_none();
        let vmms = self.vmms.as_ref().filter(|_| is_free);
        let mut which = vec![(Source::Signal, self.signals.as_fd())];
        which.extend(line.map(|line| (Source::Line, line.as_fd())));
        which.extend(vmms.map(|vmms| (Source::Vmm, vmms.as_fd())));
        let ends = self.relay.iter().flat_map(Relay::ends);
        which.extend(ends.map(|end| (Source::Relay, end)));
        let mut sources: Vec<PollFd<'_>> = (which.iter())
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        let patience = match line {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::try_from(REJOIN_PAUSE).unwrap_or(PollTimeout::ZERO),
        };
        match poll(&mut sources, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = Ready::default();
        for ((source, _), polled) in which.iter().zip(&sources) {
            let happened = polled.revents().is_some_and(|events| !events.is_empty());
            match source {
                Source::Signal => ready.signal |= happened,
                Source::Line => ready.line |= happened,
                Source::Vmm => ready.vmm |= happened,
                Source::Relay => ready.relay |= happened,
            }
        }
        Ok(ready)
    }

    fn accept(&self) -> Option<UnixStream> {
        let accepted = self.vmms.as_ref()?.accept();
        accepted.ok().map(|(vmm, _)| vmm)
    }
}

/// What can happen.
#[derive(Clone, Copy)]
enum Source {
    Signal,
    Line,
    Vmm,
    Relay,
}
