//! Between a VMM and the backend: what one end sends on the control channel, the other end gets, with
//! descriptors. A guest's commands do not come by here: their channel is one of those descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// A VMM that is attached.
#[derive(Debug)]
pub(crate) struct Relay {
    vmm: UnixStream,
    backend: UnixStream,
    /// Whether the last that the VMM sent was an order to end.
    shut_down: bool,
}

/// How it stands after bytes were passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// Both ends are there.
    GoesOn,
    /// The VMM has gone.
    VmmGone,
    /// The backend has closed the connection.
    BackendGone,
    /// The backend has closed it because the VMM had ordered the TPM to end.
    ShutDown,
}

enum Read {
    Nothing,
    End,
    Bytes(usize, Option<OwnedFd>),
}

const CHUNK: usize = 16 * 1024;
/// An end that takes nothing for so long is not there.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// `CMD_SHUTDOWN`, as a whole request.
const SHUTDOWN: [u8; 4] = [0, 0, 0, 3];

impl Relay {
    pub(crate) fn between(vmm: UnixStream, backend: UnixStream) -> io::Result<Self> {
        for stream in [&vmm, &backend] {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(WRITE_DEADLINE))?;
        }
        Ok(Self {
            vmm,
            backend,
            shut_down: false,
        })
    }

    /// What to wait on.
    pub(crate) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.vmm.as_fd(), self.backend.as_fd()]
    }

    /// Passes on what has arrived at either end.
    pub(crate) fn pass(&mut self) -> Passed {
        let mut chunk = [0; CHUNK];
        match read(&self.vmm, &mut chunk) {
            Ok(Read::Nothing) => {}
            Ok(Read::Bytes(length, descriptor)) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                self.shut_down = bytes == SHUTDOWN;
                if write(&self.backend, bytes, descriptor.as_ref()).is_err() && !self.shut_down {
                    return Passed::BackendGone;
                }
            }
            Ok(Read::End) | Err(_) => return Passed::VmmGone,
        }
        match read(&self.backend, &mut chunk) {
            Ok(Read::Nothing) => Passed::GoesOn,
            Ok(Read::Bytes(length, descriptor)) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                match write(&self.vmm, bytes, descriptor.as_ref()) {
                    Ok(()) => Passed::GoesOn,
                    Err(_) if self.shut_down => Passed::ShutDown,
                    Err(_) => Passed::VmmGone,
                }
            }
            Ok(Read::End) | Err(_) if self.shut_down => Passed::ShutDown,
            Ok(Read::End) | Err(_) => Passed::BackendGone,
        }
    }
}

fn read(from: &UnixStream, chunk: &mut [u8]) -> Result<Read, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut parts = [IoSliceMut::new(chunk)];
    let received = match recvmsg(from, &mut parts, &mut ancillary, flags) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Read::Nothing),
        Err(error) => return Err(error),
    };
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptor = came.last().or(descriptor);
        }
    }
    Ok(match received.bytes {
        0 => Read::End,
        length => Read::Bytes(length, descriptor),
    })
}

/// The descriptor goes with the first byte, as it came with one of them.
fn write(to: &UnixStream, mut bytes: &[u8], descriptor: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut descriptors: Vec<BorrowedFd<'_>> = descriptor.map(AsFd::as_fd).into_iter().collect();
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let sent = match sendmsg(
            to,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => sent,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        descriptors.clear();
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn bytes_and_descriptors_pass_and_an_end_is_told_apart() -> anyhow::Result<()> {
        let (mut qemu, vmm) = UnixStream::pair()?;
        let (mut tpm, backend) = UnixStream::pair()?;
        let mut relay = Relay::between(vmm, backend)?;
        assert_eq!(relay.pass(), Passed::GoesOn);
        let (mut data, theirs) = UnixStream::pair()?;
        write(&qemu, &[0, 0, 0, 0x10], Some(&OwnedFd::from(theirs)))?;
        assert_eq!(relay.pass(), Passed::GoesOn);
        let mut chunk = [0; CHUNK];
        let Ok(Read::Bytes(4, Some(came))) = read(&tpm, &mut chunk) else {
            anyhow::bail!("no descriptor");
        };
        UnixStream::from(came).write_all(b"x")?;
        let mut one = [0];
        data.read_exact(&mut one)?;
        assert_eq!(&one, b"x");
        tpm.write_all(&[0; 4])?;
        assert_eq!(relay.pass(), Passed::GoesOn);
        let mut answer = [1; 4];
        qemu.read_exact(&mut answer)?;
        assert_eq!(answer, [0; 4]);
        qemu.write_all(&SHUTDOWN)?;
        assert_eq!(relay.pass(), Passed::GoesOn);
        tpm.write_all(&[0; 4])?;
        drop(tpm);
        assert_eq!(relay.pass(), Passed::GoesOn);
        assert_eq!(relay.pass(), Passed::ShutDown);
        drop(qemu);
        assert_eq!(relay.pass(), Passed::VmmGone);
        Ok(())
    }
}
