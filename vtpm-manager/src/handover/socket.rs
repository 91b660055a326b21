//! The socket, and packets on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use socket_file::make_room;
use tokio::io::unix::AsyncFd;
use vrot_handover::channel::{Channel, Packet};
use vrot_handover::message::FromManager;

/// Listens for programs that hand over. The socket's file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<Channel>,
    path: PathBuf,
}

/// A program that hands over.
#[derive(Debug)]
pub(super) struct Connection(AsyncFd<Channel>);

/// All VMs of a host come at a time, after a restart of the manager.
const BACKLOG: i32 = 4096;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

impl Listener {
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        make_room(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self {
            socket: watched(Channel::over(socket))?,
            path: path.to_owned(),
        })
    }

    pub(super) async fn accept(&self) -> io::Result<Connection> {
        loop {
            let mut ready = self.socket.readable().await?;
            let accepted = ready.try_io(|socket| Ok(accept_with(socket.get_ref(), FLAGS)?));
            if let Ok(accepted) = accepted {
                return Ok(Connection(watched(Channel::over(accepted?))?));
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no other way to watch a descriptor")]
fn watched(socket: Channel) -> io::Result<AsyncFd<Channel>> {
    // SAFETY: a channel owns its descriptor, which stays open, and the same one, until it is dropped.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    /// The user at the other end, by the kernel's word.
    pub(super) fn peer_uid(&self) -> Option<u32> {
        let peer = socket_peercred(self.0.get_ref().as_fd()).ok()?;
        Some(peer.uid.as_raw())
    }

    /// The next packet; none when the other end is gone.
    pub(super) async fn receive(&self) -> io::Result<Option<Packet>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|channel| channel.get_ref().receive()) {
                return received;
            }
        }
    }

    /// Sends a message. Who takes none for as long as the socket's buffer is full is waited for: the
    /// caller limits that.
    pub(super) async fn send(
        &self,
        message: &FromManager,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready.try_io(|channel| channel.get_ref().send(message, descriptor));
            if let Ok(sent) = sent {
                return sent;
            }
        }
    }
}
