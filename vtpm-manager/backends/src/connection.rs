//! Messages to and from one backend.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use backend_link::frame::{self, FrameError, HEADER};
use backend_link::message::{FromBackend, Status, ToBackend};
use cert_chain::VrotId;
use minicbor::Decode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::BackendError;
use super::folder::RuntimeFolder;
use super::process::Process;

/// A connection to a backend. What the backend says is read by a task of its own, because
/// reading a frame must not be given up half-way.
pub(super) struct Connection {
    vrot: VrotId,
    writer: OwnedWriteHalf,
    incoming: mpsc::Receiver<Result<FromBackend, FrameError>>,
    _reader: AbortOnDropHandle<()>,
}

/// Messages that may wait to be looked at; beyond this number the backend has to wait.
const QUEUE: usize = 16;
/// A backend listens some milliseconds after its start; a machine that starts a thousand of them
/// at once needs longer.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);
/// A backend that does not take a message for so long hangs.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Connection {
    /// Dials a backend that was just started: as soon as it listens, and for as long as it lives.
    pub(super) async fn to_new(
        folder: &RuntimeFolder,
        child: &mut Process,
    ) -> Result<Self, BackendError> {
        let deadline = Instant::now() + LISTEN_DEADLINE;
        let mut pause = FIRST_PAUSE;
        loop {
            match UnixStream::connect(folder.manager()).await {
                Ok(stream) => return Ok(Self::new(folder.vrot(), stream)),
                Err(error) if is_not_there_yet(&error) => {}
                Err(error) => return Err(io_error(folder.vrot(), error)),
            }
            if Instant::now() > deadline {
                return Err(BackendError::Deadline {
                    vrot: folder.vrot(),
                    what: "listen",
                    limit: LISTEN_DEADLINE,
                });
            }
            if let Ok(status) = tokio::time::timeout(pause, child.ended()).await {
                return Err(BackendError::Ended {
                    vrot: folder.vrot(),
                    reason: status,
                });
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Dials a backend that runs already; `None` if it is gone. The process is the one that
    /// listens, as the kernel has it, if it answers after this.
    pub(super) async fn to_running(
        folder: &RuntimeFolder,
    ) -> Result<Option<(Self, Process)>, BackendError> {
        let vrot = folder.vrot();
        let stream = match UnixStream::connect(folder.manager()).await {
            Ok(stream) => stream,
            Err(error) if is_not_there_yet(&error) => return Ok(None),
            Err(error) => return Err(io_error(vrot, error)),
        };
        let peer = stream.peer_cred().map_err(|error| io_error(vrot, error))?;
        let process = Process::found(peer.pid().unwrap_or_default())
            .map_err(|source| BackendError::Process { vrot, source })?;
        Ok(process.map(|process| (Self::new(vrot, stream), process)))
    }

    pub(super) fn new(vrot: VrotId, stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let (sender, incoming) = mpsc::channel(QUEUE);
        let reader = AbortOnDropHandle::new(tokio::spawn(read(reader, sender)));
        Self {
            vrot,
            writer,
            incoming,
            _reader: reader,
        }
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, message: &ToBackend) -> Result<(), BackendError> {
        let frame = frame::encode(message).map_err(|source| BackendError::Frame {
            vrot: self.vrot,
            source,
        })?;
        match tokio::time::timeout(WRITE_DEADLINE, self.writer.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io_error(self.vrot, error)),
            Err(_) => Err(BackendError::Deadline {
                vrot: self.vrot,
                what: "take a message",
                limit: WRITE_DEADLINE,
            }),
        }
    }

    /// The next message; `None` after the last one. May be given up and called again.
    pub(super) async fn receive(&mut self) -> Result<Option<FromBackend>, BackendError> {
        let vrot = self.vrot;
        self.incoming
            .recv()
            .await
            .transpose()
            .map_err(|source| BackendError::Frame { vrot, source })
    }
}

async fn read(mut reader: OwnedReadHalf, messages: mpsc::Sender<Result<FromBackend, FrameError>>) {
    loop {
        let message = match read_frame(&mut reader).await {
            Ok(None) => return,
            Ok(Some(message)) => Ok(message),
            // A backend that was killed, or gave its manager up in the middle of a message, leaves
            // a reset connection or half a frame: that is an end, too.
            Err(FrameError::Io(error)) if is_end(&error) => return,
            Err(error) => Err(error),
        };
        let failed = message.is_err();
        if messages.send(message).await.is_err() || failed {
            return;
        }
    }
}

/// Reads a message; `None` at the end of the stream.
pub(super) async fn read_frame<T: for<'b> Decode<'b, ()>>(
    reader: &mut OwnedReadHalf,
) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER];
    let Some((first, rest)) = header.split_first_mut() else {
        return Ok(None);
    };
    if reader.read(std::slice::from_mut(first)).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(rest).await?;
    let mut body = vec![0; frame::announced(header)?];
    reader.read_exact(&mut body).await?;
    frame::decode(&body).map(Some)
}

/// No socket, or one without a listener: yet, or any more.
fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

fn io_error(vrot: VrotId, error: io::Error) -> BackendError {
    BackendError::Frame {
        vrot,
        source: FrameError::Io(error),
    }
}

/// A backend that was occupied when its last manager ended may take the next for a second one.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// What a backend may say before its status: what its last manager did not acknowledge, and what
/// its guest changes meanwhile.
const MAX_EARLY: usize = 64;

/// A running backend that has told its status.
pub(super) struct Found {
    pub(super) connection: Connection,
    pub(super) process: Process,
    pub(super) status: Status,
    /// What it said before and then.
    pub(super) early: VecDeque<FromBackend>,
}

/// Dials a running backend; `None` if it is gone.
pub(super) async fn introduced(folder: &RuntimeFolder) -> Result<Option<Found>, BackendError> {
    loop {
        let Some((mut connection, process)) = Connection::to_running(folder).await? else {
            return Ok(None);
        };
        // A backend that ends a connection that it has not seen yet is no failure.
        if connection.send(&ToBackend::Hello).await.is_ok() {
            let mut early = VecDeque::new();
            while let Some(message) = connection.receive().await? {
                let status = match &message {
                    FromBackend::Status(status) => Some(status.clone()),
                    _ => None,
                };
                early.push_back(message);
                if let Some(status) = status {
                    return Ok(Some(Found {
                        connection,
                        process,
                        status,
                        early,
                    }));
                }
                if early.len() > MAX_EARLY {
                    let vrot = folder.vrot();
                    return Err(BackendError::Stranger { vrot });
                }
            }
        }
        sleep(STATUS_PAUSE).await;
    }
}
