//! State goes to the manager: sealed, and each change acknowledged before the guest is
//! answered, as long as the manager keeps up.

mod carrying;
mod durability;
mod logging;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, geteuid};
use zeroize::Zeroizing;

use crate::sockets::{Arrival, Connection, Listener, WRITE_DEADLINE};
use backend_link::frame::{self, HEADER};
use backend_link::instance::Instance;
use backend_link::message::{FromBackend, Open, PROTOCOL, Status, ToBackend};
use backend_link::sealing::{CarriedId, Content, Sealer, SealingError};

use durability::{Acknowledged, DurabilityState};

/// The manager's end of a backend: listens for it, talks to one at a time.
pub struct ManagerLink {
    listener: Listener,
    /// The only user that is let in: the one that this process was when it began to listen.
    manager: Uid,
    connection: Option<Connection>,
    /// Whether it has said anything yet.
    greeted: bool,
    vrot: Option<OpenVrot>,
    /// The right to serve this vRoT; a copy of one needs none.
    instance: Option<Instance>,
    /// Answers that arrived while something else was waited for.
    waiting: Vec<ToBackend>,
    /// Whether a manager went away since it was last asked.
    lost: bool,
    durability: DurabilityState,
    attached: bool,
    /// VMMs that have served a guest.
    vmms: u64,
    /// The volatile state that a VMM carries, while it is of use.
    carried: Option<CarriedId>,
    /// Whether the manager was last sent a state that names one that is of no use any more.
    names_used: bool,
}

/// After somebody dialled who was turned away, or could not be accepted.
const REFUSED_PAUSE: Duration = Duration::from_millis(2);

/// State that was opened.
pub struct OpenedState {
    /// The permanent state, unless the vRoT is new.
    pub permanent: Option<Zeroizing<Vec<u8>>>,
    /// The volatile state, if the vRoT was suspended.
    pub volatile: Option<Zeroizing<Vec<u8>>>,
}

struct OpenVrot {
    id: [u8; 16],
    generation: u64,
    sealer: Sealer,
    deadline: Duration,
    answer_within: Option<Duration>,
}

/// How long a state is waited for.
#[derive(Clone, Copy)]
enum Patience {
    /// As a guest waits: for a moment only, where nobody makes it durable.
    Guest,
    /// Until the deadline in any case.
    Deadline,
}

/// Why a message of the manager was not followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is open already.
    #[error("the vRoT is open already")]
    Twice,
    /// Key and state do not fit.
    #[error(transparent)]
    Sealing(#[from] SealingError),
}

impl ManagerLink {
    /// Listens for the manager, and holds the right to serve a vRoT to the end of the process.
    pub fn bind(path: &Path, instance: Option<Instance>) -> io::Result<Self> {
        Ok(Self {
            listener: Listener::bind(path)?,
            manager: geteuid(),
            connection: None,
            greeted: false,
            vrot: None,
            instance,
            waiting: Vec::new(),
            lost: false,
            durability: DurabilityState::default(),
            attached: false,
            vmms: 0,
            carried: None,
            names_used: false,
        })
    }

    /// The listening socket.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// The connection to the manager, while there is one.
    pub fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// Takes a manager that dials in, unless one is here or it is the wrong user.
    pub fn accept(&mut self) {
        let Some(stream) = self.listener.accept() else {
            return;
        };
        let connection = Connection::new(stream);
        let uid = connection.peer_uid();
        match uid {
            Ok(uid) if uid == self.manager.as_raw() => {}
            other => {
                tracing::warn!(
                    ?other,
                    "a process of another user was refused at the manager's socket"
                );
                return;
            }
        }
        // The present connection may have ended since it was last read.
        let messages = self.receive();
        self.waiting.extend(messages);
        if self.connection.is_some() {
            tracing::warn!("a second manager was turned away: one is here");
            return;
        }
        self.connection = Some(connection);
        self.greeted = false;
        self.durability.dialled();
        // Before anything that a guest may ask for: evidence says how it stands.
        if self.durability.is_degraded() {
            self.send_status();
        }
        // A new manager may never have seen what the last one did not acknowledge.
        self.push_unsaved();
    }

    /// Reads what the manager sent. `None` when nothing complete has arrived.
    pub fn read(&mut self) -> Vec<ToBackend> {
        let mut messages = std::mem::take(&mut self.waiting);
        messages.extend(self.receive());
        messages
    }

    fn receive(&mut self) -> Vec<ToBackend> {
        let Some(connection) = &mut self.connection else {
            return Vec::new();
        };
        let mut messages = Vec::new();
        let mut alive = true;
        match connection.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => alive = false,
            Err(error) => {
                tracing::warn!(%error, "the manager's connection failed");
                alive = false;
            }
        }
        while let Some((header, rest)) = connection.received().split_first_chunk::<HEADER>() {
            let message = match frame::announced(*header) {
                Ok(length) if rest.len() < length => break,
                Ok(length) => frame::decode(rest.get(..length).unwrap_or_default())
                    .map(|message| (message, HEADER + length)),
                Err(error) => Err(error),
            };
            match message {
                Ok((message, length)) => {
                    connection.consume(length);
                    self.greeted = true;
                    match message {
                        // At once: kept for later, it would be taken for a message of the next manager.
                        ToBackend::Leaving => self.durability.left(),
                        other => messages.push(other),
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the manager does not speak our language");
                    alive = false;
                    break;
                }
            }
        }
        if !alive {
            self.lose();
        }
        messages
    }

    fn lose(&mut self) {
        self.connection = None;
        self.lost = true;
        self.durability.lost();
    }

    /// Whether a manager went away since this was last called: it will not answer what it was
    /// asked, even if another one is here.
    pub fn take_loss(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// Whether the manager is connected.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Sends a message, if the manager is there. A manager that takes none loses its connection,
    /// so that no guest waits longer for it than for its state; it dials in again.
    pub fn send(&mut self, message: &FromBackend) {
        let patience =
            (self.vrot.as_ref()).map_or(WRITE_DEADLINE, |vrot| vrot.deadline.min(WRITE_DEADLINE));
        let Some(connection) = &mut self.connection else {
            return;
        };
        let sent = frame::encode(message)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let written = connection.write_until(&bytes, Instant::now() + patience);
                written.map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            tracing::warn!(error, "the manager did not take a message");
            self.lose();
        }
    }

    /// Takes key and state, and gives back the state, opened.
    pub fn open(&mut self, open: &Open) -> Result<OpenedState, OpenError> {
        if self.vrot.is_some() {
            return Err(OpenError::Twice);
        }
        let sealer = Sealer::new(&open.key, *open.vrot, open.generation)?;
        let permanent = open.permanent.as_ref();
        let permanent = permanent
            .map(|sealed| sealer.open_permanent(sealed))
            .transpose()?;
        let volatile = open.volatile.as_ref();
        let volatile = volatile
            .map(|sealed| sealer.open(Content::Volatile, sealed))
            .transpose()?;
        // What becomes of a copy is of no consequence for the vRoT's VM.
        let carried = permanent.as_ref().and_then(|permanent| permanent.carried);
        self.carried = carried.filter(|_| !open.is_copy);
        let state = OpenedState {
            permanent: permanent.map(|permanent| permanent.state),
            volatile,
        };
        self.vrot = Some(OpenVrot {
            id: *open.vrot,
            generation: open.generation,
            sealer,
            deadline: Duration::from_millis(open.durability_deadline_ms.into()),
            answer_within: (open.answer_within_ms)
                .map(|milliseconds| Duration::from_millis(milliseconds.into())),
        });
        Ok(state)
    }

    /// The volatile state as the manager keeps it.
    pub fn seal_volatile(&self, state: &[u8]) -> Option<Vec<u8>> {
        let sealed = self.vrot.as_ref()?.sealer.seal(Content::Volatile, state);
        sealed
            .inspect_err(|error| tracing::error!(%error, "the volatile state is not kept"))
            .ok()
    }

    /// For how long a VMM waits for an answer to a command, if it does not wait for each.
    pub fn answer_within(&self) -> Option<Duration> {
        self.vrot.as_ref()?.answer_within
    }

    /// Whether key and state are here.
    pub fn is_open(&self) -> bool {
        self.vrot.is_some()
    }

    /// Notes whether a VMM is attached, and tells the manager.
    pub fn set_attached(&mut self, attached: bool) {
        if self.attached != attached {
            self.attached = attached;
            self.send_attachment();
        }
    }

    /// Notes that a VMM has its guest's commands served from now on, and tells the manager before the
    /// first of them is: what was measured of a launch is that of one VMM.
    pub fn count_vmm(&mut self) {
        self.vmms = self.vmms.saturating_add(1);
        self.send_attachment();
    }

    fn send_attachment(&mut self) {
        self.send(&FromBackend::Attachment {
            attached: self.attached,
            vmms: Some(self.vmms),
        });
    }

    /// Answers a [`ToBackend::Hello`].
    pub fn send_status(&mut self) {
        let status = Status {
            pid: std::process::id(),
            vrot: self.vrot.as_ref().map(|vrot| vrot.id.into()),
            generation: self.vrot.as_ref().map_or(0, |vrot| vrot.generation),
            attached: self.attached,
            degraded: self.durability.is_degraded(),
            pushed: self.durability.pushed(),
            persisted: self.durability.persisted(),
            protocol: Some(PROTOCOL),
            vmms: Some(self.vmms),
        };
        self.send(&FromBackend::Status(status));
    }

    /// Notes that a state is durable.
    pub fn persisted(&mut self, sequence: u64) {
        match self.durability.acknowledged(sequence) {
            Acknowledged::All if self.durability.is_degraded() => {
                tracing::info!("all state is durable again");
                self.set_degraded(false);
            }
            Acknowledged::SendNewest => self.push_unsaved(),
            Acknowledged::All | Acknowledged::More => {}
        }
    }

    /// Pushes a changed state and waits until it is durable, or until the deadline: then the
    /// vRoT is degraded. From then on the guest waits for a moment only, until the manager
    /// commits again: then each change waits for its commit as before, so that a guest that
    /// never rests does not stay ahead of its manager for ever. Between a manager that ended as
    /// planned and the next one, it waits for that moment at most, too.
    ///
    /// A state that takes out the name of what a VMM carries is waited for until the deadline: it
    /// is what keeps that from being used twice.
    pub fn save(&mut self, state: &[u8]) {
        let patience = if self.names_used {
            Patience::Deadline
        } else {
            Patience::Guest
        };
        self.save_within(state, patience);
    }

    fn save_within(&mut self, state: &[u8], patience: Patience) {
        let Some(vrot) = &self.vrot else {
            return;
        };
        let began = Instant::now();
        let deadline = vrot.deadline;
        let sealed = match vrot.sealer.seal_permanent(state, self.carried) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(%error, "a state stays unsaved");
                self.set_degraded(true);
                return;
            }
        };
        self.names_used = false;
        if self.durability.changed(sealed) {
            self.push_unsaved();
        }
        while !self.durability.is_durable() {
            let limit = match patience {
                Patience::Guest => self.durability.patience(deadline),
                Patience::Deadline => deadline,
            };
            if !self.wait_for_message(began + limit) {
                self.give_up_waiting();
                return;
            }
        }
    }

    fn give_up_waiting(&mut self) {
        if self.durability.gave_up() {
            tracing::error!(
                sequence = self.durability.pushed(),
                "a command is answered although its state is not durable yet"
            );
            self.set_degraded(true);
        }
    }

    /// The manager hears of it before the guest is answered, and so before the guest can ask for
    /// evidence that would say otherwise. A manager that is not there finds it in the file of this
    /// instance.
    fn set_degraded(&mut self, degraded: bool) {
        self.durability.set_degraded(degraded);
        if let Some(instance) = &self.instance
            && let Err(error) = instance.note(degraded)
        {
            tracing::error!(%error, degraded, "the file of this instance does not say how it stands");
        }
        self.send_status();
    }

    /// Follows acknowledgements and keeps everything else for later; false after the deadline.
    fn wait_for_message(&mut self, deadline: Instant) -> bool {
        if self.connection.is_none() {
            // Perhaps a restarted manager dials in meanwhile. Asking for it again and again, a
            // thousand backends would keep it from the processors that it needs to get there.
            if self.listener.wait_for_client(deadline).unwrap_or(false) {
                self.accept();
                if self.connection.is_none() {
                    std::thread::sleep(REFUSED_PAUSE);
                }
            }
            return Instant::now() < deadline;
        }
        let readable = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.wait_readable(deadline).unwrap_or(false));
        if !readable {
            return Instant::now() < deadline;
        }
        for message in self.receive() {
            match message {
                ToBackend::Persisted { sequence } => self.persisted(sequence),
                ToBackend::Hello => self.send_status(),
                other => self.waiting.push(other),
            }
        }
        true
    }

    /// Whether messages were kept for later.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Pushes the newest state if the manager was not sent it yet, whether it answers or not.
    pub fn push_rest(&mut self) {
        if !self.durability.is_sent() {
            self.push_unsaved();
        }
    }

    fn push_unsaved(&mut self) {
        if let Some((sequence, sealed)) = self.durability.send_newest() {
            let sealed = sealed.into();
            self.send(&FromBackend::StateChanged { sequence, sealed });
        }
    }
}
