//! Files that come with a request, as descriptors (`SCM_RIGHTS`, unix(7)).
//!
//! A connection keeps what came with the bytes of a request until that is answered. A caller that may not
//! call brings none: they are closed. Closes wait for whatever their sender chose, and so none is made here,
//! by us or by the kernel: neither of a file, nor of a connection in which files are left unread.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use foreign_descriptors::{Foreign, SCM_MAX_FD};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::MAX_DESCRIPTORS;

/// The files that came over a connection and were not taken yet.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Mutex<Vec<ReceivedFile>>>);

/// A file that came along.
pub type ReceivedFile = Arc<Foreign<File>>;

/// A connection of a caller, with the files that come along.
#[derive(Debug)]
pub struct StreamWithFiles {
    stream: ManuallyDrop<UnixStream>,
    files: Option<Files>,
}

/// Room for whatever comes along with bytes.
const ANCILLARY: usize = cmsg_space!(ScmRights(SCM_MAX_FD));

impl Files {
    /// Those that came since the last request was answered.
    pub fn take(&self) -> Vec<ReceivedFile> {
        std::mem::take(&mut self.files())
    }

    /// Closes those that no request took.
    pub fn close(&self) {
        drop(self.take());
    }

    fn keep(&self, file: Foreign<File>) {
        let mut files = self.files();
        if files.len() < MAX_DESCRIPTORS {
            files.push(Arc::new(file));
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<ReceivedFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamWithFiles {
    /// Files are taken into `files`, if the caller may bring any.
    pub fn new(stream: UnixStream, files: Option<Files>) -> Self {
        Self {
            stream: ManuallyDrop::new(stream),
            files,
        }
    }

    /// The connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

#[expect(unsafe_code, reason = "a value is moved out of what is being dropped")]
impl Drop for StreamWithFiles {
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and not used after this.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) };
        if let Ok(stream) = stream.into_std() {
            drop(Foreign::from(stream));
        }
        if let Some(files) = &self.files {
            files.close();
        }
    }
}

impl AsyncRead for StreamWithFiles {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &*self;
        loop {
            ready!(this.stream.poll_read_ready(context))?;
            let bytes = buffer.initialize_unfilled();
            let received = this.stream.try_io(Interest::READABLE, || {
                receive(&*this.stream, bytes, this.files.as_ref())
            });
            match received {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn receive(stream: impl AsFd, bytes: &mut [u8], files: Option<&Files>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        stream,
        &mut [IoSliceMut::new(bytes)],
        &mut along,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut came = false;
    for message in along.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                let file = Foreign::from(File::from(descriptor));
                match files {
                    Some(files) => files.keep(file),
                    None => drop(file),
                }
                came = true;
            }
        }
    }
    if came && foreign_descriptors::is_behind() {
        return Err(io::Error::other("too many descriptors wait to be closed"));
    }
    Ok(message.bytes)
}

impl AsyncWrite for StreamWithFiles {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
