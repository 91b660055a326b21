//! A connection of packets over the Unix domain, with a descriptor beside a message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use foreign_descriptors::{Foreign, SCM_MAX_FD};
use minicbor::{Decode, Encode};
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};

/// The longest message is the content of a folder's file, or a refusal.
pub const MAX_MESSAGE: usize = 8 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub struct Channel(Foreign);

/// A packet, with a descriptor if one came along.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    /// What came along.
    pub descriptor: Option<Foreign>,
}

impl Channel {
    /// Connects to the manager's socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::over(socket))
    }

    /// Takes over a connected socket.
    pub fn over(socket: OwnedFd) -> Self {
        Self(socket.into())
    }

    /// Sends a message, as a whole or not at all.
    pub fn send(
        &self,
        message: &impl Encode<()>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let bytes = minicbor::to_vec(message).map_err(io::Error::other)?;
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = [IoSlice::new(&bytes)];
        sendmsg(&self.0, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next packet; none when the other end is gone. One that is too long, or has several
    /// descriptors, is an error. There is room for as many as may come: the kernel would close the
    /// others here, and wait for whatever their closes wait for.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors: Vec<Foreign> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                descriptors.extend(came.map(Foreign::from));
            }
        }
        let descriptor = descriptors.pop();
        use rustix::net::ReturnFlags;
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
            || !descriptors.is_empty()
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message that is too long, or has too many descriptors",
            ));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        Ok(Some(Packet { bytes, descriptor }))
    }
}

impl Packet {
    /// What it says; all of it must be the message.
    pub fn message<T: for<'b> Decode<'b, ()>>(&self) -> io::Result<T> {
        let mut decoder = minicbor::Decoder::new(&self.bytes);
        let message = decoder
            .decode()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if decoder.position() == self.bytes.len() {
            return Ok(message);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "bytes follow the message",
        ))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::net::socketpair;

    use super::*;
    use crate::message::{FromManager, ToManager};

    fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Channel::over(one), Channel::over(other)))
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptor_and_an_end_is_an_end() -> anyhow::Result<()> {
        let (one, other) = pair()?;
        one.send(&ToManager::Written, Some(File::open("/dev/null")?.as_fd()))?;
        one.send(&ToManager::Attach, None)?;
        let first = other.receive()?.unwrap_or_else(|| unreachable!("sent"));
        assert_eq!(first.message::<ToManager>()?, ToManager::Written);
        assert!(first.descriptor.is_some());
        let second = other.receive()?.unwrap_or_else(|| unreachable!("sent"));
        assert_eq!(second.message::<ToManager>()?, ToManager::Attach);
        assert!(second.descriptor.is_none());
        drop(one);
        assert!(other.receive()?.is_none());
        Ok(())
    }

    #[test]
    fn what_is_too_long_or_no_message_is_refused() -> anyhow::Result<()> {
        let (one, other) = pair()?;
        let reason = "x".repeat(MAX_MESSAGE);
        one.send(&FromManager::Refused { reason }, None)?;
        assert!(other.receive().is_err());
        one.send(&[1u8, 2, 3], None)?;
        let packet = other.receive()?.unwrap_or_else(|| unreachable!("sent"));
        assert!(packet.message::<ToManager>().is_err());
        Ok(())
    }
}
