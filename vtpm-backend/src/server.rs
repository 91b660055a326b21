//! The one loop that serves a vRoT: its VMM, its host's tools and its manager, one request
//! after the other, so that the engine never sees two at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::command::{Command, HEADER, ResponseCode, length_in_stream};
use crate::control::{Courier, Reply, Request, Trusting, Vrot, handle};
use crate::engine::{Engine, StateKind};
use crate::managed::ManagerLink;
use crate::message::{FromBackend, MAX_HOLD, ToBackend};
use crate::sockets::{Arrival, Connection, Listener};
use crate::stand_alone::StateFolder;
use crate::vendor::capability::Query;
use crate::vendor::{Tickets, VendorCommand, read_response, ticket_response};

/// Where state goes, and who can be asked for evidence.
pub enum Keeper {
    /// A folder; there is no host to ask.
    Folder(StateFolder),
    /// The manager.
    Manager(Box<ManagerLink>),
}

/// A vRoT and everybody who talks to it.
pub struct Server<E> {
    engine: E,
    keeper: Keeper,
    tickets: Tickets,
    locality: u8,
    control_listener: Option<Listener>,
    control: Option<Connection>,
    /// The VMM's commands.
    data: Option<Connection>,
    host_listener: Option<Listener>,
    /// The commands of a tool on the host.
    host: Option<Connection>,
    /// While the manager has everybody else wait: until when, at the latest.
    held_until: Option<Instant>,
    ended: bool,
}

/// A peer that sends half a request must send the rest within this time.
const COMPLETION: Duration = Duration::from_millis(500);
/// What a peer may take, in all, for the answers to what it sent at a time. Nobody else is served
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// A guest that was suspended waits for its end, and not for ever.
const LONGEST_SUSPENSION: Duration = Duration::from_secs(60 * 60);
/// How often stalled peers are looked for.
const TICK_MS: u8 = 100;
/// `TPM2_Startup(TPM_SU_CLEAR)`
const STARTUP_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];

impl<E: Engine> Server<E> {
    /// A server for this TPM.
    pub fn new(engine: E, keeper: Keeper) -> Self {
        Self {
            engine,
            keeper,
            tickets: Tickets::default(),
            locality: 0,
            control_listener: None,
            control: None,
            data: None,
            host_listener: None,
            host: None,
            held_until: None,
            ended: false,
        }
    }

    /// Where a VMM attaches; with a manager, once that has handed over key and state.
    pub fn listen_for_vmm(&mut self, listener: Listener) {
        self.control_listener = Some(listener);
    }

    /// Where tools on the host send commands without a VMM. They find the TPM switched on and
    /// started, as a host's firmware would leave it.
    pub fn listen_for_host(&mut self, listener: Listener) {
        self.host_listener = Some(listener);
    }

    /// Serves until the manager ends it.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.ended {
            if self.held_until.is_some_and(|until| until <= Instant::now()) {
                tracing::warn!("the manager had the guest wait too long: it goes on");
                self.held_until = None;
            }
            let held = self.held_until.is_some();
            let ready = self.wait()?;
            if ready.manager {
                self.serve_manager();
            }
            if ready.control {
                self.serve_control();
            }
            if ready.data
                && let Some(connection) = self.data.take()
            {
                self.data = self.serve_commands(connection, Peer::Vmm);
            }
            if ready.host
                && let Some(connection) = self.host.take()
            {
                self.host = self.serve_commands(connection, Peer::Host);
            }
            // After the connections: one that has ended makes room for the next.
            if ready.control_listener {
                self.accept_vmm();
            }
            if ready.host_listener {
                self.accept_host();
            }
            // Who had to wait could not send the rest.
            if !held {
                self.drop_stalled();
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
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

    /// Without key and state there is no TPM to attach to: a VMM that is early waits.
    fn vmm_listener(&self) -> Option<&Listener> {
        match &self.keeper {
            Keeper::Manager(link) if !link.is_open() => None,
            Keeper::Manager(_) | Keeper::Folder(_) => self.control_listener.as_ref(),
        }
    }

    fn has_incomplete(&self) -> bool {
        [&self.control, &self.data, &self.host]
            .into_iter()
            .flatten()
            .any(|connection| !connection.received().is_empty())
    }

    fn drop_stalled(&mut self) {
        for connection in [&mut self.control, &mut self.data, &mut self.host] {
            if connection
                .as_mut()
                .is_some_and(|connection| connection.is_stalled(COMPLETION))
            {
                tracing::warn!("a peer that sent half a request was disconnected");
                *connection = None;
            }
        }
    }

    fn accept_vmm(&mut self) {
        let Some(stream) = self.vmm_listener().and_then(Listener::accept) else {
            return;
        };
        if self.control.is_some() {
            tracing::warn!("a second VMM was turned away: one is attached");
            return;
        }
        self.control = Connection::new(stream).ok();
        self.note_attachment();
    }

    fn accept_host(&mut self) {
        let Some(stream) = self.host_listener.as_ref().and_then(Listener::accept) else {
            return;
        };
        if self.host.is_some() {
            tracing::warn!("a second client of the data socket was turned away");
            return;
        }
        self.host = Connection::new(stream).ok();
    }

    fn note_attachment(&mut self) {
        let attached = self.control.is_some();
        if let Keeper::Manager(link) = &mut self.keeper {
            link.set_attached(attached);
        }
    }

    fn serve_control(&mut self) {
        let Some(mut connection) = self.control.take() else {
            return;
        };
        let alive = self.serve_requests(&mut connection);
        if alive {
            self.control = Some(connection);
        } else {
            // The data channel belongs to the VMM that is gone.
            self.data = None;
        }
        self.note_attachment();
    }

    /// Serves all complete requests; false when the peer is done.
    fn serve_requests(&mut self, connection: &mut Connection) -> bool {
        match connection.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return false,
            Err(error) => {
                tracing::warn!(%error, "the control channel failed");
                return false;
            }
        }
        let began = Instant::now();
        loop {
            let request = match Request::parse(connection.received()) {
                Ok(Some((request, length))) => {
                    connection.consume(length);
                    request
                }
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, "the control channel is closed");
                    return false;
                }
            };
            tracing::debug!(?request, "control");
            let takes_state = matches!(request, Request::SetStateBlob { .. });
            let courier: &dyn Courier = match &self.keeper {
                Keeper::Folder(_) => &Trusting,
                Keeper::Manager(link) => link.as_ref(),
            };
            let mut vrot = Vrot {
                engine: &mut self.engine,
                locality: &mut self.locality,
                courier,
            };
            let reply = handle(&mut vrot, request);
            if takes_state && matches!(self.keeper, Keeper::Folder(_)) {
                self.save_state_that_came();
            } else {
                self.save_changes();
            }
            let (answer, goes_on) = match reply {
                Reply::Answer(answer) => (answer, true),
                Reply::AnswerAndEnd(answer) => (answer, false),
                Reply::TakeDataFd => (self.take_data_fd(connection), true),
            };
            if let Err(error) = connection.write(&answer) {
                tracing::warn!(%error, "the control channel did not take a reply");
                return false;
            }
            if !goes_on {
                return false;
            }
            if began.elapsed() > PATIENCE {
                tracing::warn!("a VMM that sent much and takes little is disconnected");
                return false;
            }
        }
    }

    /// A new descriptor takes an older one's place: a VMM that was restarted brings its own.
    fn take_data_fd(&mut self, connection: &mut Connection) -> Vec<u8> {
        const SUCCESS: [u8; 4] = [0; 4];
        const BAD_PARAMETER: [u8; 4] = [0, 0, 0, 3];
        let taken = connection
            .take_descriptor()
            .map(|descriptor: OwnedFd| UnixStream::from(descriptor))
            .and_then(|stream| Connection::new(stream).ok());
        match taken {
            Some(data) => {
                self.data = Some(data);
                SUCCESS.to_vec()
            }
            None => BAD_PARAMETER.to_vec(),
        }
    }

    /// Serves all complete commands; gives the connection back while the peer is there.
    fn serve_commands(&mut self, mut connection: Connection, peer: Peer) -> Option<Connection> {
        match connection.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return None,
            Err(error) => {
                tracing::warn!(%error, ?peer, "a data channel failed");
                return None;
            }
        }
        loop {
            let length = match length_in_stream(connection.received()) {
                Ok(Some(length)) if connection.received().len() >= length => length,
                Ok(_) => return Some(connection),
                Err(code) => {
                    // Where the next command starts is not known any more.
                    let _ = connection.write(&code.response());
                    tracing::warn!(?peer, "a data channel with an impossible command is closed");
                    return None;
                }
            };
            let command = zeroize::Zeroizing::new(
                connection
                    .received()
                    .get(..length)
                    .unwrap_or_default()
                    .to_vec(),
            );
            connection.consume(length);
            if peer == Peer::Host {
                self.start_for_host();
            }
            let response = self.execute(&command);
            if let Err(error) = connection.write(&response) {
                tracing::warn!(%error, ?peer, "a data channel did not take a response");
                return None;
            }
        }
    }

    /// Whether the volatile state of a suspended vRoT waits for its VMM.
    fn is_suspended(&mut self) -> bool {
        !self.engine.is_on() && matches!(self.engine.state(StateKind::Volatile), Ok(Some(_)))
    }

    /// Tools on the host and the manager expect a TPM that is on and started.
    fn start_for_host(&mut self) {
        if self.engine.is_on() {
            return;
        }
        if let Err(error) = self.engine.power_on() {
            tracing::error!(%error, "the TPM does not switch on");
            return;
        }
        self.engine.execute(&STARTUP_CLEAR, 0);
        self.save_changes();
    }

    /// Carries out one command; always gives a response.
    fn execute(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Ok(command) = Command::parse(bytes) else {
            // The engine has its own words for malformed headers.
            return self.engine.execute(bytes, self.locality);
        };
        tracing::trace!(code = format_args!("0x{:08x}", command.code()), "command");
        let vendor = VendorCommand::parse(&command).filter(|_| self.engine.is_on());
        if let Some(vendor) = vendor {
            return match vendor {
                Ok(vendor) => self.execute_vendor(vendor),
                Err(code) => code.response(),
            };
        }
        let query = Query::parse(&command);
        let response = self.engine.execute(bytes, self.locality);
        self.save_changes();
        match query {
            Some(query) if response.len() > HEADER => query.patch(response),
            _ => response,
        }
    }

    fn execute_vendor(&mut self, command: VendorCommand) -> Vec<u8> {
        match command {
            VendorCommand::Request { digest } => {
                let ticket = self.tickets.open();
                match &mut self.keeper {
                    Keeper::Manager(link) if link.is_connected() => {
                        link.send(&FromBackend::HostEvidenceRequested {
                            ticket,
                            digest: digest.into(),
                        });
                    }
                    Keeper::Manager(_) | Keeper::Folder(_) => self.tickets.answer(ticket, None),
                }
                ticket_response(ticket)
            }
            VendorCommand::Read { ticket, offset } => read_response(&self.tickets, ticket, offset),
        }
    }

    /// Has changed state saved before anybody sees the response.
    fn save_changes(&mut self) {
        if let Some(state) = self.engine.changed_permanent_state() {
            self.save(&zeroize::Zeroizing::new(state));
        }
    }

    /// A VMM brought the state of a VM that moved here.
    fn save_state_that_came(&mut self) {
        if let Ok(Some(state)) = self.engine.state(StateKind::Permanent) {
            self.engine.changed_permanent_state();
            self.save(&zeroize::Zeroizing::new(state));
        }
    }

    fn save(&mut self, state: &[u8]) {
        match &mut self.keeper {
            Keeper::Folder(folder) => {
                if let Err(error) = folder.save(state) {
                    tracing::error!(%error, "a state stays unsaved");
                }
            }
            Keeper::Manager(link) => link.save(state),
        }
    }

    fn serve_manager(&mut self) {
        let Keeper::Manager(link) = &mut self.keeper else {
            return;
        };
        // Before anybody is accepted: a manager that was restarted may have ended its old
        // connection and dialled in anew while the engine was at work.
        let messages = link.read();
        link.accept();
        if link.take_loss() {
            self.tickets.decline_pending();
            self.held_until = None;
        }
        for message in messages {
            self.follow(message);
        }
    }

    fn follow(&mut self, message: ToBackend) {
        let Keeper::Manager(link) = &mut self.keeper else {
            return;
        };
        match message {
            ToBackend::Hello => link.send_status(),
            ToBackend::Open(open) => match link.open(&open) {
                Ok(state) => {
                    let parts = [
                        (StateKind::Permanent, state.permanent),
                        (StateKind::Volatile, state.volatile),
                    ];
                    let accepted = parts.iter().try_for_each(|(kind, state)| match state {
                        Some(state) => self.engine.set_state(*kind, state),
                        None => Ok(()),
                    });
                    self.engine.changed_permanent_state();
                    match accepted {
                        Ok(()) => link.send(&FromBackend::Opened),
                        Err(error) => self.fail(format!("the TPM refuses its state: {error}")),
                    }
                }
                Err(error) => self.fail(error.to_string()),
            },
            ToBackend::Persisted { sequence } => link.persisted(sequence),
            ToBackend::HostEvidence { ticket, layer } => {
                self.tickets.answer(ticket, layer.map(Into::into));
            }
            ToBackend::Execute { id, command } => {
                if !link.is_open() {
                    self.fail("a command came before key and state".to_owned());
                    return;
                }
                let response = if self.is_suspended() {
                    // Switched on by anybody but its VMM, the TPM would forget where it was.
                    ResponseCode::RETRY.response()
                } else {
                    self.start_for_host();
                    match Command::parse(&command) {
                        Ok(_) => self.execute(&command),
                        Err(_) => ResponseCode::COMMAND_SIZE.response(),
                    }
                };
                if let Keeper::Manager(link) = &mut self.keeper {
                    link.send(&FromBackend::Executed {
                        id,
                        response: response.into(),
                    });
                }
            }
            ToBackend::Hold { held } => {
                self.held_until = held.then(|| Instant::now() + MAX_HOLD);
            }
            ToBackend::Stop => self.end(),
            ToBackend::Suspend => {
                let volatile = self.volatile_state();
                // What the guest did from now on would not be in it.
                self.held_until = Some(Instant::now() + LONGEST_SUSPENSION);
                if let Keeper::Manager(link) = &mut self.keeper {
                    link.send(&FromBackend::Suspended { volatile });
                }
            }
        }
    }

    /// Ends on the manager's order: all state is saved before it hears of it.
    fn end(&mut self) {
        self.engine.power_off();
        self.save_changes();
        if let Keeper::Manager(link) = &mut self.keeper {
            link.send(&FromBackend::Stopped);
        }
        self.ended = true;
    }

    /// The volatile state, sealed for the manager: of a TPM that is on, or the one with which it
    /// waits for its VMM. Otherwise there is none.
    fn volatile_state(&mut self) -> Option<ByteVec> {
        if self.engine.is_on()
            && let Err(error) = self.engine.store_volatile()
        {
            tracing::warn!(%error, "there is no volatile state to suspend");
            return None;
        }
        let state = self.engine.state(StateKind::Volatile).ok().flatten()?;
        match &self.keeper {
            Keeper::Manager(link) => link
                .seal_volatile(&zeroize::Zeroizing::new(state))
                .map(Into::into),
            Keeper::Folder(_) => None,
        }
    }

    /// A vRoT that cannot be opened is of no use: it says why, and ends.
    fn fail(&mut self, reason: String) {
        tracing::error!(reason, "the backend ends");
        if let Keeper::Manager(link) = &mut self.keeper {
            link.send(&FromBackend::Failed { reason });
        }
        self.ended = true;
    }
}

/// Who sends commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Vmm,
    Host,
}

/// What can be read from now.
struct Ready {
    manager: bool,
    control_listener: bool,
    host_listener: bool,
    control: bool,
    data: bool,
    host: bool,
}

/// A folder's state, loaded into a TPM that is off.
pub fn load_state<E: Engine>(engine: &mut E, folder: &StateFolder) -> anyhow::Result<()> {
    use anyhow::Context;
    if let Some(state) = folder.load()? {
        engine.set_state(StateKind::Permanent, &state).context(
            "the state folder holds something that is no TPM state; nothing was changed",
        )?;
        engine.changed_permanent_state();
    }
    Ok(())
}
