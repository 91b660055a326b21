//! Descriptors that are sent along with bytes, and one whose close takes its time.

use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use anyhow::Result;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt};

/// Sends bytes over a Unix socket, with these descriptors.
pub fn send_along(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[RawFd]) -> Result<()> {
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(descriptors)],
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

/// A connection whose close waits for an hour, or until its peer has gone, as that takes nothing.
pub fn lingering() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    while stream.write_all(&[0; 64 * 1024]).is_ok() {}
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&stream, Linger, &linger)?;
    Ok((stream, peer))
}
