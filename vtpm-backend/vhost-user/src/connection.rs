//! One VMM's connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use crate::device::{Device, Tpm};
use crate::eventfd;
use crate::memory::{Memory, SharedMemory};
use crate::protocol::{MAX_QUEUE_SIZE, Protocol};
use crate::queue::{self, Buffers, OpenRequest, Served};

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The VMM closed it.
    #[error("the VMM is gone")]
    Ended,
    /// A message that makes no sense, or asks for what there is not.
    #[error("a message of the VMM is refused: {0}")]
    Refused(ProtocolError),
    /// It sends and does not read.
    #[error("the VMM does not read what it is answered")]
    Full,
    /// The rest of a message does not come.
    #[error("the VMM sent half a message")]
    Stalled,
    /// The kernel refuses.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The library refuses to make a ring.
    #[error("there is no ring: {0}")]
    Ring(QueueError),
}

impl From<Errno> for ConnectionError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// What a VMM has its device do next. What is only half there is not among it.
#[derive(Debug)]
pub enum Arrival {
    /// A whole message.
    Message,
    /// The connection is over.
    End(ConnectionError),
}

/// How much of the VMM's next message has come.
enum Received {
    Nothing,
    Part,
    Message,
}

pub(crate) struct Connection {
    stream: UnixStream,
    requests: BackendReqHandler<Mutex<Protocol>>,
    protocol: Arc<Mutex<Protocol>>,
    memory: SharedMemory,
    ring: VringMutex,
    buffers: Buffers,
    /// The request that the TPM is at.
    open: Option<OpenRequest>,
    /// Whether something waits in the queue that nobody says.
    has_request: bool,
    is_broken: bool,
    /// Since when the rest of a message is missing.
    incomplete_since: Option<Instant>,
}

/// A message begins with its number, its flags and the length of what follows (vhost-user, header).
const HEADER: usize = 12;
/// `VHOST_USER_GET_PROTOCOL_FEATURES`
const GET_PROTOCOL_FEATURES: [u8; 4] = 15_u32.to_le_bytes();
/// A message's flags: the version, and whether it is a reply.
const VERSION_1: [u8; 4] = 1_u32.to_le_bytes();
const VERSION_1_REPLY: [u8; 4] = 5_u32.to_le_bytes();
/// What the library takes.
const MAX_BODY: usize = 4096;
/// A VMM that sent half a message must send the rest within this time.
const COMPLETION: Duration = Duration::from_millis(500);

impl Connection {
    pub(crate) fn new(stream: UnixStream, device: &dyn Device) -> Result<Self, ConnectionError> {
        let memory = SharedMemory::new(GuestMemoryMmap::new());
        let ring =
            VringMutex::new(memory.clone(), MAX_QUEUE_SIZE).map_err(ConnectionError::Ring)?;
        let protocol = Protocol::new(device, Memory::new(memory.clone()), ring.clone());
        let protocol = Arc::new(Mutex::new(protocol));
        let requests = BackendReqHandler::from_stream(stream.try_clone()?, protocol.clone());
        Ok(Self {
            stream,
            requests,
            protocol,
            memory,
            ring,
            buffers: Buffers::default(),
            open: None,
            has_request: false,
            is_broken: false,
            incomplete_since: None,
        })
    }

    pub(crate) fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(crate) fn kick(&self) -> Option<Arc<OwnedFd>> {
        let kick = self.protocol().kick().cloned();
        kick.filter(|_| !self.is_broken && self.open.is_none())
    }

    pub(crate) fn has_open_request(&self) -> bool {
        self.open.is_some()
    }

    pub(crate) fn has_request(&self) -> bool {
        self.has_request
    }

    pub(crate) fn is_offered_request(&self) -> bool {
        let memory = self.memory.memory();
        !self.is_broken && self.open.is_none() && queue::is_offered(&self.ring, &memory)
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete_since.is_some()
    }

    fn protocol(&self) -> MutexGuard<'_, Protocol> {
        self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be followed now: a message of which all is there, because the library would wait for
    /// the rest, or the end of the connection.
    pub(crate) fn arrival(&mut self) -> Option<Arrival> {
        match self.look() {
            Ok(Received::Message) => {
                self.incomplete_since = None;
                Some(Arrival::Message)
            }
            Ok(Received::Nothing) => {
                self.incomplete_since = None;
                None
            }
            Ok(Received::Part) => {
                let since = *self.incomplete_since.get_or_insert_with(Instant::now);
                (since.elapsed() > COMPLETION).then_some(Arrival::End(ConnectionError::Stalled))
            }
            Err(error) => Some(Arrival::End(error)),
        }
    }

    /// Follows the message that is there.
    pub(crate) fn serve(&mut self, device: &mut dyn Device) -> Result<(), ConnectionError> {
        if !is_writable(&self.stream)? {
            return Err(ConnectionError::Full);
        }
        if !device.is_negotiated_anew() && self.offers_nothing()? {
            return Ok(());
        }
        self.requests
            .handle_request()
            .map_err(|error| match error {
                ProtocolError::Disconnected | ProtocolError::SocketBroken(_) => {
                    ConnectionError::Ended
                }
                error => ConnectionError::Refused(error),
            })?;
        let mut protocol = self.protocol();
        let (was_reset, started) = (protocol.take_reset(), protocol.take_start());
        let is_changed = protocol.take_change();
        let is_running = protocol.is_running();
        drop(protocol);
        if was_reset {
            device.reset();
        }
        if started || !is_running {
            self.open = None;
        }
        if started {
            self.is_broken = false;
            if let Err(error) = queue::begin(&self.ring, &self.memory.memory()) {
                self.breaks(&error);
            }
        }
        self.has_request = is_running && !self.is_broken && (self.has_request || is_changed);
        Ok(())
    }

    /// Serves the next request of the queue, if there is one.
    pub(crate) fn serve_queue(&mut self, device: &mut dyn Device, tpm: &mut dyn Tpm) {
        let Some(kick) = self.kick() else {
            self.has_request = false;
            return;
        };
        eventfd::clear(&kick);
        let memory = self.memory.memory();
        match queue::serve_next(&self.ring, &memory, &mut self.buffers, device, tpm) {
            Ok(Served::Done { more }) => self.has_request = more,
            Ok(Served::Open(open)) => {
                self.open = Some(open);
                self.has_request = false;
            }
            Err(error) => self.breaks(&error),
        }
    }

    /// Answers the open request; false if there is none.
    pub(crate) fn answer(&mut self, answer: &[u8]) -> bool {
        let Some(open) = self.open.take() else {
            return false;
        };
        match queue::answer(&self.ring, &self.memory.memory(), &open, answer) {
            Ok(more) => self.has_request = more,
            Err(error) => self.breaks(&error),
        }
        true
    }

    fn breaks(&mut self, error: &queue::BrokenQueue) {
        tracing::warn!(%error, "the guest's queue is not served until it is set up anew");
        self.is_broken = true;
        self.has_request = false;
    }

    /// Answers what is asked for extensions of the protocol: that there are none. The library would
    /// offer acknowledgements (REPLY_ACK) all the same. False if something else is asked.
    fn offers_nothing(&mut self) -> io::Result<bool> {
        const QUESTION: [[u8; 4]; 3] = [GET_PROTOCOL_FEATURES, VERSION_1, [0; 4]];
        const ANSWER: [[u8; 4]; 5] = [
            GET_PROTOCOL_FEATURES,
            VERSION_1_REPLY,
            8_u32.to_le_bytes(),
            [0; 4],
            [0; 4],
        ];
        let mut header = [0_u8; HEADER];
        recv(&self.stream, &mut header, RecvFlags::PEEK)?;
        if header != *QUESTION.as_flattened() {
            return Ok(false);
        }
        self.stream.read_exact(&mut header)?;
        self.stream.write_all(ANSWER.as_flattened())?;
        Ok(true)
    }

    /// How much of a message is there; all, of one that the library refuses at once.
    fn look(&self) -> Result<Received, ConnectionError> {
        let mut header = [0_u8; HEADER];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let length = match retry_on_intr(|| recv(&self.stream, &mut header, flags)) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Err(ConnectionError::Ended),
            Ok((_, length)) => length,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        let Some(body) = header.last_chunk().filter(|_| length == HEADER) else {
            return Ok(Received::Part);
        };
        let body = usize::try_from(u32::from_le_bytes(*body)).unwrap_or(usize::MAX);
        if body > MAX_BODY {
            return Ok(Received::Message);
        }
        let arrived = usize::try_from(ioctl_fionread(&self.stream)?).unwrap_or(usize::MAX);
        Ok(match arrived >= HEADER + body {
            true => Received::Message,
            false => Received::Part,
        })
    }
}

fn is_writable(stream: &UnixStream) -> Result<bool, Errno> {
    let mut polled = [PollFd::new(stream, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default()))?;
    let [stream] = polled;
    Ok(stream.revents().contains(PollFlags::OUT))
}
