//! Sockets of the one loop: streams with what was read and is not used up.
//!
//! Nothing here waits longer than it says, whatever the other end does. A stream that was handed
//! over is still in other hands, and so are its properties: each call says for itself that it does
//! not block, and `foreign_descriptors` closes.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use foreign_descriptors::{Foreign, SCM_MAX_FD};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType,
    recvmsg, send,
};
use socket_file::make_room;
use zeroize::{Zeroize, Zeroizing};

use locked_memory::append;

/// A listening socket that removes its file, if it has one, when it ends.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: Option<PathBuf>,
}

/// Whose a socket's file is, and what its permissions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFile {
    /// Permissions.
    pub mode: u32,
    /// Its user, if not this process's.
    pub uid: Option<u32>,
    /// Its group, if not this process's.
    pub gid: Option<u32>,
}

/// A connection, with the bytes that have arrived and are not used up.
#[derive(Debug)]
pub struct Connection {
    stream: Foreign,
    /// Zeroed as it is used up: keys arrive here.
    received: Zeroizing<Vec<u8>>,
    /// Since when an incomplete message has been waiting for its rest.
    incomplete_since: Option<Instant>,
    /// A descriptor that came along.
    descriptor: Option<Foreign>,
    buffers: Buffers,
}

/// Where the kernel puts what is read. Both are kept, because to have them anew for each read takes
/// longer than to execute a short command, and hold nothing but zeros between two reads.
#[derive(Debug)]
struct Buffers {
    bytes: Box<[u8]>,
    /// For what comes along.
    ancillary: Box<[MaybeUninit<u8>]>,
}

/// Why a descriptor that was handed over is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoConnection {
    /// Not what VMMs hand over. Of others it is not known how long a call takes.
    #[error("it is not a connected stream of the Unix domain")]
    NotAStream,
    /// The kernel does not say what it is.
    #[error("the kernel does not say what it is")]
    Unknown(#[from] Errno),
}

/// What reading brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// More bytes.
    Bytes,
    /// Nothing yet.
    Nothing,
    /// The other end is gone.
    End,
}

/// Room for all of what may come along with bytes: descriptors, and the sender's credentials, label
/// and process. Whoever has a stream in hand as well can ask for the last three (`SO_PASSCRED`,
/// `SO_PASSSEC`, `SO_PASSPIDFD`), and what there is no room for is closed in the middle of a read.
const ANCILLARY: usize = cmsg_space!(ScmRights(SCM_MAX_FD)) + 8 * 1024;
/// Read at a time.
const CHUNK: usize = 16 * 1024;
/// A peer that does not take an answer for so long is not there.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(5);

impl Listener {
    /// Listens at `path`, for this user alone. A socket that a dead process left is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        make_room(path)?;
        let listener = Self::over(UnixListener::bind(path)?.into(), Some(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// The same for others as well. The file has its permissions from its first moment, and what took
    /// its place meanwhile is given to nobody. Only for a process with one thread: the
    /// permissions of files that another one creates at the same time would be others.
    pub fn bind_for(path: &Path, file: SocketFile) -> io::Result<Self> {
        use nix::sys::stat::{Mode, umask};
        make_room(path)?;
        let before = umask(Mode::from_bits_truncate(!file.mode & 0o777));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = Self::over(bound?.into(), Some(path))?;
        if file.uid.is_some() || file.gid.is_some() {
            give_away(path, file)?;
        }
        Ok(listener)
    }

    /// Listens at an address of the network.
    pub fn bind_tcp(address: std::net::SocketAddr) -> io::Result<Self> {
        Self::over(std::net::TcpListener::bind(address)?.into(), None)
    }

    /// Takes over a socket that listens already, as a parent process gave it; its file, if it has one,
    /// is the parent's.
    pub fn given(socket: OwnedFd) -> io::Result<Self> {
        if socket_type(&socket)? != SocketType::STREAM || !socket_acceptconn(&socket)? {
            let error = "it is no socket that listens for streams";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        Self::over(socket, None)
    }

    fn over(socket: OwnedFd, path: Option<&Path>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let path = path.map(Path::to_owned);
        Ok(Self { socket, path })
    }

    /// Its file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The next client, if one waits.
    pub fn accept(&self) -> Option<OwnedFd> {
        rustix::net::accept_with(&self.socket, rustix::net::SocketFlags::CLOEXEC).ok()
    }

    /// Waits until a client dials or the deadline passes.
    pub fn wait_for_client(&self, deadline: Instant) -> io::Result<bool> {
        wait_readable(self, deadline)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Gives a socket's file that was just made to another user or group: of this file alone, whatever is
/// at its path next. Others may be able to write in its folder.
fn give_away(path: &Path, file: SocketFile) -> io::Result<()> {
    use nix::fcntl::{AtFlags, OFlag, open};
    use nix::sys::stat::Mode;
    use nix::unistd::{Gid, Uid, fchownat, geteuid};
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = fs::File::from(open(path, flags, Mode::empty())?);
    let found = opened.metadata()?;
    let is_own = found.uid() == geteuid().as_raw() && found.nlink() == 1;
    if !found.file_type().is_socket() || !is_own {
        let error = "another file took the socket's place: it is given to nobody";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, error));
    }
    let (uid, gid) = (file.uid.map(Uid::from_raw), file.gid.map(Gid::from_raw));
    Ok(fchownat(&opened, "", uid, gid, AtFlags::AT_EMPTY_PATH)?)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes over a stream that was accepted here.
    pub fn new(stream: impl Into<OwnedFd>) -> Self {
        Self::over(stream.into().into())
    }

    /// Takes over a stream that another process handed over, if it is one.
    pub fn handed_over(descriptor: Foreign) -> Result<Self, NoConnection> {
        let is_stream = socket_domain(&descriptor)? == AddressFamily::UNIX
            && socket_type(&descriptor)? == SocketType::STREAM
            && !socket_acceptconn(&descriptor)?;
        match is_stream {
            true => Ok(Self::over(descriptor)),
            false => Err(NoConnection::NotAStream),
        }
    }

    /// Over a descriptor that is one.
    pub(crate) fn over(stream: Foreign) -> Self {
        Self {
            stream,
            received: Zeroizing::default(),
            incomplete_since: None,
            descriptor: None,
            buffers: Buffers::default(),
        }
    }

    /// Reads what has arrived, and takes a descriptor that comes along: the last one, if there are
    /// several. All others are closed, also those that came with an error.
    pub fn read(&mut self) -> io::Result<Arrival> {
        self.read_at_most(CHUNK)
    }

    /// The same, of so many bytes.
    pub(crate) fn read_at_most(&mut self, limit: usize) -> io::Result<Arrival> {
        let Buffers { bytes, ancillary } = &mut self.buffers;
        // It owns the descriptors that the kernel has put in, also when there was no room for all.
        let mut along = RecvAncillaryBuffer::new(ancillary);
        let message = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(bytes.get_mut(..limit).unwrap_or_default())],
            &mut along,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        );
        let length = match message {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Arrival::Nothing),
            Err(Errno::CONNRESET) => return Ok(Arrival::End),
            Err(error) => return Err(error.into()),
        };
        for message in along.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    self.descriptor = Some(descriptor.into());
                }
            }
        }
        drop(along);
        if close_process_descriptors(ancillary) {
            ancillary.fill(MaybeUninit::new(0));
        }
        if length == 0 {
            return Ok(Arrival::End);
        }
        let arrived = bytes.get_mut(..length).unwrap_or_default();
        append(&mut self.received, arrived);
        arrived.zeroize();
        Ok(Arrival::Bytes)
    }

    /// The bytes that have arrived and are not used up.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Uses bytes up.
    pub fn consume(&mut self, length: usize) {
        let length = length.min(self.received.len());
        let rest = self.received.len() - length;
        self.received.copy_within(length.., 0);
        self.received.get_mut(rest..).unwrap_or_default().zeroize();
        self.received.truncate(rest);
        self.incomplete_since = None;
    }

    /// Takes a descriptor that came along.
    pub fn take_descriptor(&mut self) -> Option<Foreign> {
        self.descriptor.take()
    }

    /// Whether the rest of a message has been missing for longer than this, if one has begun.
    pub fn is_stalled(&mut self, has_begun: bool, limit: Duration) -> bool {
        if !has_begun {
            self.incomplete_since = None;
            return false;
        }
        self.incomplete_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            > limit
    }

    /// Writes all of it: one write where the socket takes it, as some peers read only once.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.write_now(bytes)? {
            [] => Ok(()),
            rest => self.write_until(rest, Instant::now() + WRITE_DEADLINE),
        }
    }

    /// Writes what the socket takes at once; the rest of it.
    fn write_now<'b>(&self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.stream, bytes, flags) {
            Ok(written) => Ok(bytes.get(written..).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(bytes),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, with a deadline of one's own. After it, an unknown part was written.
    pub fn write_until(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = self.write_now(rest)?;
            if left.len() == rest.len() {
                wait_writable(&self.stream, deadline)?;
            }
            rest = left;
        }
        Ok(())
    }

    /// The user at the other end.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Self::peer_uid_of(&self.stream)
    }

    /// The user at the other end of a stream.
    pub fn peer_uid_of(stream: &impl AsFd) -> io::Result<u32> {
        nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
            .map(|credentials| credentials.uid())
            .map_err(io::Error::from)
    }

    /// Whether something could be written now.
    pub fn is_writable(&self) -> bool {
        let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut descriptors, PollTimeout::ZERO);
        let [stream] = descriptors;
        let events = stream.revents().unwrap_or(PollFlags::empty());
        ready.is_ok() && events.contains(PollFlags::POLLOUT)
    }

    /// Waits until something arrives or the deadline passes.
    pub fn wait_readable(&self, deadline: Instant) -> io::Result<bool> {
        wait_readable(self, deadline)
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            bytes: vec![0; CHUNK].into(),
            ancillary: vec![MaybeUninit::new(0); ANCILLARY].into(),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Rounded up, so that a deadline is not polled for in a tight loop.
fn timeout(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

/// Closes the descriptors of processes (`SCM_PIDFD`) among what came along: the library that reads
/// the rest does not know them. Says whether anything came along.
#[expect(unsafe_code, reason = "no library closes them")]
fn close_process_descriptors(space: &[MaybeUninit<u8>]) -> bool {
    const SCM_PIDFD: i32 = 4;
    // SAFETY: the whole of it was initialised, with zeros or by the kernel.
    let bytes = unsafe { &*(std::ptr::from_ref(space) as *const [u8]) };
    // The kernel was given what is aligned of it.
    let skipped = space
        .as_ptr()
        .align_offset(align_of::<nix::libc::cmsghdr>());
    let mut rest = bytes.get(skipped..).unwrap_or_default();
    let mut found = false;
    while let Some((level, kind, length, content)) = control_message(rest) {
        found = true;
        if (level, kind) == (nix::libc::SOL_SOCKET, SCM_PIDFD)
            && let Some(descriptor) = content.first_chunk().copied().map(RawFd::from_ne_bytes)
            && descriptor >= 0
        {
            // SAFETY: the kernel has put it into this process, and nothing else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    found
}

/// The first of some control messages (`struct cmsghdr`: a length of 64 bits, level, type, content):
/// level, type, length of the whole, content.
fn control_message(bytes: &[u8]) -> Option<(i32, i32, usize, &[u8])> {
    const HEADER: usize = size_of::<nix::libc::cmsghdr>();
    let (length, rest) = bytes.split_first_chunk()?;
    let (level, rest) = rest.split_first_chunk()?;
    let (kind, _) = rest.split_first_chunk()?;
    let length = usize::from_ne_bytes(*length);
    let content = bytes.get(HEADER..length)?;
    Some((
        i32::from_ne_bytes(*level),
        i32::from_ne_bytes(*kind),
        length,
        content,
    ))
}

fn wait_readable(socket: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut descriptors, timeout(deadline))? > 0)
}

fn wait_writable(stream: &impl AsFd, deadline: Instant) -> io::Result<()> {
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut descriptors, timeout(deadline)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Read;
    use std::os::fd::IntoRawFd;

    use super::*;

    /// Where the kernel puts the first header, if the space for it begins anywhere.
    #[repr(align(8))]
    struct Aligned([MaybeUninit<u8>; 64]);

    #[test]
    fn a_process_descriptor_is_closed_wherever_the_space_for_it_begins() {
        for skipped in 0..8 {
            let (mut read, write) = io::pipe().unwrap();
            let mut aligned = Aligned([MaybeUninit::new(0); 64]);
            let first = if skipped == 0 { 0 } else { 8 };
            let header = [
                20u64.to_ne_bytes().as_slice(),
                &nix::libc::SOL_SOCKET.to_ne_bytes(),
                &4i32.to_ne_bytes(),
                &write.into_raw_fd().to_ne_bytes(),
            ]
            .concat();
            for (place, byte) in aligned.0.iter_mut().skip(first).zip(header) {
                place.write(byte);
            }
            let found = close_process_descriptors(aligned.0.get(skipped..).unwrap());
            assert!(found, "{skipped} bytes skipped");
            let flags = nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
            // The end, once no descriptor is left that can write.
            assert_eq!(read.read(&mut [0]).ok(), Some(0), "{skipped} bytes skipped");
        }
    }

    #[test]
    fn what_took_a_socket_s_place_is_given_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let file = SocketFile {
            mode: 0o600,
            uid: None,
            gid: Some(nix::unistd::getegid().as_raw()),
        };
        let listener = Listener::bind_for(&path, file).unwrap();
        let other = folder.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        assert!(give_away(&path, file).is_err(), "a second name of a file");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(give_away(&path, file).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(give_away(&path, file).is_err(), "a file");
        drop(listener);
    }
}
