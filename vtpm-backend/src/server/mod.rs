//! The one loop that serves a vRoT: its VMM, its host's tools and its manager, one request
//! after the other, so that the engine never sees two at once.

mod aside;
mod background;
mod caller;
mod device;
mod interim;
mod keeper;
mod logging;
mod manager_requests;
mod peers;
mod persistence;
mod polling;
mod readiness;
mod slow;

use std::io;
use std::time::{Duration, Instant};

use program_output::log;
use tpm_wire::Command;
use zeroize::Zeroizing;

use crate::engine::Engine;
use crate::host_commands::capability::Query;
use crate::host_commands::{Found, Tickets, VendorCommand, read_response, ticket_response};
use crate::sockets::{Connection, Listener};
use crate::termination::Termination;
use backend_link::admission::VmmAdmission;
use backend_link::message::FromBackend;
use vhost_user_tpm::Frontend;

use aside::Brought;
use background::Background;
use device::DeviceSocket;
use interim::Interim;
use peers::{Peer, Vmm, has_stalled};
use polling::Polling;

pub use caller::{Admission, Ending, Startup};
pub use keeper::Keeper;
pub use persistence::load_state;

/// A vRoT and its peers: a VMM, tools on the host, and a manager.
pub struct Server<E> {
    engine: Background<E>,
    keeper: Keeper,
    tickets: Tickets,
    locality: u8,
    control_listener: Option<Listener>,
    admission: Admission,
    ending: Ending,
    vmm: Option<Vmm>,
    /// Where a VMM connects that shares its guest's memory.
    device: Option<DeviceSocket>,
    host_listener: Option<Listener>,
    /// The commands of a tool on the host.
    host: Option<Connection>,
    /// Whether such a tool finds the TPM started.
    starts_for_host: bool,
    /// While the manager has everybody else wait: until when, at the latest.
    held_until: Option<Instant>,
    /// Where the log goes, unless the manager gets it.
    stderr: Option<log::Stderr>,
    /// Whose the volatile state is that the TPM was not switched on with yet.
    brought: Brought,
    /// The volatile state that lies on the disk, while the TPM that wrote it did nothing since.
    stored: Option<Zeroizing<Vec<u8>>>,
    /// Whether the TPM is on for the manager's commands alone: then nobody has a volatile state in it.
    on_for_manager: bool,
    polling: Polling,
    interim: Interim,
    /// Stand-alone: for how long a VMM waits for an answer to a command, if it does not wait for each.
    answer_within: Option<Duration>,
    termination: Termination,
    ended: bool,
}

/// A peer that sends half a request must send the rest within this time.
const COMPLETION: Duration = Duration::from_millis(500);
/// `TPM2_Startup(TPM_SU_CLEAR)`
const STARTUP_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];

impl<E: Engine + Send + 'static> Server<E> {
    /// Starts what answers while the TPM works, and where it works, with the rights that this thread
    /// has.
    pub fn start_threads(&mut self) -> io::Result<()> {
        if self.device.is_some() {
            self.engine.start()?;
        }
        self.interim.start()
    }
}

impl<E: Engine> Server<E> {
    /// A server for this TPM.
    pub fn new(engine: E, keeper: Keeper, termination: Termination) -> io::Result<Self> {
        Ok(Self {
            engine: Background::new(engine),
            keeper,
            tickets: Tickets::default(),
            locality: 0,
            control_listener: None,
            admission: Admission::Users(VmmAdmission::default()),
            ending: Ending::default(),
            vmm: None,
            device: None,
            host_listener: None,
            host: None,
            starts_for_host: true,
            held_until: None,
            stderr: None,
            brought: Brought::Nothing,
            stored: None,
            on_for_manager: false,
            polling: Polling::new(),
            interim: Interim::new()?,
            answer_within: None,
            termination,
            ended: false,
        })
    }

    /// Where a VMM attaches, and whose it may be; with a manager, once that has handed over key and
    /// state.
    pub fn listen_for_vmm(&mut self, listener: Listener, admission: VmmAdmission) {
        self.control_listener = Some(listener);
        self.admit(admission);
    }

    fn admit(&mut self, mut admission: VmmAdmission) {
        // That of the manager, where the backend becomes another one.
        admission.uids.push(nix::unistd::geteuid().as_raw());
        self.admission = Admission::Users(admission);
    }

    /// Where a VMM connects that shares its guest's memory, for this device. Whose it may be is as
    /// with [`listen_for_vmm`](Self::listen_for_vmm).
    pub fn listen_for_device(
        &mut self,
        listener: Listener,
        frontend: Frontend,
        admission: VmmAdmission,
    ) {
        self.device = Some(DeviceSocket::new(listener, frontend));
        self.admit(admission);
    }

    /// Where tools on the host send commands without a VMM. They find the TPM switched on and
    /// started, as a host's firmware would leave it.
    pub fn listen_for_host(&mut self, listener: Listener) {
        self.host_listener = Some(listener);
    }

    /// Stand-alone: a VMM that waits no longer than this for an answer is told in time that its guest
    /// has to send the command again.
    pub fn answer_within(&mut self, patience: Duration) {
        self.answer_within = Some(patience);
    }

    /// Where a stand-alone backend's log goes.
    pub fn log_to(&mut self, stderr: log::Stderr) {
        self.stderr = Some(stderr);
    }

    /// Serves until the manager or a signal ends it.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.ended {
            if self.held_until.is_some_and(|until| until <= Instant::now()) {
                tracing::warn!("the manager had the guest wait too long: it goes on");
                self.held_until = None;
            }
            let ready = match self.next_command() {
                Some(ready) => ready,
                None => self.look_around()?,
            };
            if ready.termination {
                tracing::info!("told to end by a signal");
                self.end();
                break;
            }
            if ready.manager {
                self.serve_manager();
                // What it asked for holds from now on, also for a command that came at the same
                // time.
                if self.ended || self.held_until.is_some() {
                    self.pass_log_on();
                    continue;
                }
            }
            if ready.background {
                self.end_background();
            }
            if ready.control {
                self.serve_control();
            }
            if ready.data
                && let Some(connection) = self.vmm.as_mut().and_then(|vmm| vmm.data.take())
            {
                let connection = self.serve_command(connection, Peer::Vmm);
                let is_gone = connection.is_none();
                if let Some(vmm) = &mut self.vmm {
                    vmm.data = connection;
                }
                self.end_without_data(is_gone);
            }
            if ready.device_connection {
                self.serve_device_connection();
            }
            if ready.device_queue {
                self.serve_device_queue();
            }
            if ready.host
                && let Some(connection) = self.host.take()
            {
                self.host = self.serve_command(connection, Peer::Host);
                self.end_without_data(self.host.is_none());
            }
            // After the connections: one that has ended makes room for the next.
            if ready.control_listener {
                self.accept_vmm();
            }
            if ready.device_listener {
                self.accept_device();
            }
            if ready.host_listener {
                self.accept_host();
            }
            // Peers that had to wait could not send the rest.
            if !ready.held {
                self.drop_stalled();
            }
            if ready.is_nothing() {
                self.keeper.retry();
            }
            self.pass_log_on();
        }
        Ok(())
    }

    /// Without key and state there is no TPM to attach to: a VMM that is early waits.
    fn vmm_listener(&self) -> Option<&Listener> {
        let listener = self.control_listener.as_ref();
        listener.filter(|_| self.keeper.has_state())
    }

    /// A second VMM is told at once that one is attached; but what has no data channel may be a tool
    /// that sets the locality and goes, and whoever comes next waits for that.
    fn waiting_vmm(&self) -> Option<&Listener> {
        match &self.vmm {
            Some(vmm) if vmm.data.is_none() => None,
            Some(_) | None => self.vmm_listener(),
        }
    }

    /// Tools on the host have their turns one after the other, as with a TPM that has no resource
    /// manager: the next one waits in the socket's queue, of a length that the kernel limits.
    fn waiting_host(&self) -> Option<&Listener> {
        match self.host {
            Some(_) => None,
            None => self.host_listener.as_ref(),
        }
    }

    fn has_incomplete(&self) -> bool {
        let vmm = self.vmm.as_ref();
        vmm.is_some_and(Vmm::has_begun_request)
            || [vmm.and_then(|vmm| vmm.data.as_ref()), self.host.as_ref()]
                .into_iter()
                .flatten()
                .any(|connection| !connection.received().is_empty())
            || (self.device.as_ref()).is_some_and(DeviceSocket::is_incomplete)
    }

    fn drop_stalled(&mut self) {
        const DROPPED: &str = "a peer that sent half a request was disconnected";
        if self
            .vmm
            .as_mut()
            .is_some_and(|vmm| vmm.is_stalled(COMPLETION))
        {
            tracing::warn!("{DROPPED}");
            self.detach_vmm();
        }
        let data = self.vmm.as_mut().map(|vmm| &mut vmm.data);
        for connection in data.into_iter().chain([&mut self.host]) {
            if connection
                .as_mut()
                .is_some_and(|connection| has_stalled(connection, COMPLETION))
            {
                tracing::warn!("{DROPPED}");
                *connection = None;
            }
        }
    }

    fn accept_vmm(&mut self) {
        let Some(stream) = self.vmm_listener().and_then(Listener::accept) else {
            return;
        };
        let connection = Connection::new(stream);
        if !self.admits(connection.peer_uid()) {
            return;
        }
        // The one before may have gone just before this one came.
        self.serve_control();
        if self.vmm.is_some() {
            tracing::warn!("a second VMM was turned away: one is attached");
            return;
        }
        self.vmm = Some(Vmm::new(connection));
        self.note_attachment();
    }

    /// The VMM is gone, and its data channel with it: however it ended.
    fn detach_vmm(&mut self) {
        let had_data = self.vmm.take().is_some_and(|vmm| vmm.data.is_some());
        self.detached();
        self.note_attachment();
        self.end_without_control(had_data);
    }

    fn accept_host(&mut self) {
        if let Some(stream) = self.waiting_host().and_then(Listener::accept) {
            self.host = Some(Connection::new(stream));
        }
    }

    fn note_attachment(&mut self) {
        let device = self.device.as_ref();
        let attached = self.vmm.is_some() || device.is_some_and(DeviceSocket::is_connected);
        if let Some(link) = self.keeper.manager_mut() {
            link.set_attached(attached);
        }
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
        self.forget_used_volatile();
        self.engine.execute(&STARTUP_CLEAR, 0);
        self.keeper.save(&mut self.engine);
    }

    /// Carries out one command; always gives a response.
    fn execute(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Ok(command) = Command::parse(bytes) else {
            // The engine answers malformed headers with response codes of its own.
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
        self.go_on();
        let response = self.engine.execute(bytes, self.locality);
        self.keeper.save(&mut self.engine);
        match query {
            Some(query) => query.patch(response),
            _ => response,
        }
    }

    fn execute_vendor(&mut self, command: VendorCommand) -> Vec<u8> {
        match command {
            VendorCommand::Request { digest } => {
                let ticket = self.tickets.open();
                if !self.keeper.request_evidence(ticket, digest) {
                    self.tickets.answer(ticket, None);
                }
                ticket_response(ticket)
            }
            VendorCommand::Read { ticket, offset } => {
                let found = self.tickets.find(ticket, offset);
                let response = read_response(found);
                if found == Found::Elsewhere {
                    let wanted = FromBackend::HostEvidenceWanted { ticket, offset };
                    self.keeper.send(&wanted);
                    self.tickets.asked(ticket);
                }
                response
            }
        }
    }
}
