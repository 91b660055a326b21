//! Files that come with a request, as descriptors (`SCM_RIGHTS`, unix(7)).
//!
//! A connection keeps what came with the bytes of a request until that is answered. A caller that may not
//! call brings none: they are closed by the kernel.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::{MAX_DESCRIPTORS, close};

/// The files that came over a connection and were not taken yet.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Mutex<Vec<Arc<File>>>>);

/// A connection of a caller, with the files that come along.
#[derive(Debug)]
pub struct StreamWithFiles {
    stream: UnixStream,
    files: Option<Files>,
}

/// Room for the descriptors of a whole request. For what there is no room, the kernel closes.
const ANCILLARY: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS));

impl Files {
    /// Those that came since the last request was answered.
    pub fn take(&self) -> Vec<Arc<File>> {
        std::mem::take(&mut self.files())
    }

    /// Closes those that no request took.
    pub fn close(&self) {
        close(self.take());
    }

    fn keep(&self, file: File) {
        let mut files = self.files();
        if files.len() < MAX_DESCRIPTORS {
            files.push(Arc::new(file));
        } else {
            drop(files);
            close(vec![Arc::new(file)]);
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamWithFiles {
    /// Files are taken into `files`, if the caller may bring any.
    pub fn new(stream: UnixStream, files: Option<Files>) -> Self {
        Self { stream, files }
    }
}

impl Drop for StreamWithFiles {
    fn drop(&mut self) {
        if let Some(files) = &self.files {
            files.close();
        }
    }
}

impl AsyncRead for StreamWithFiles {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(files) = self.files.clone() else {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        };
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let bytes = buffer.initialize_unfilled();
            let received = self
                .stream
                .try_io(Interest::READABLE, || receive(&self.stream, bytes, &files));
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

fn receive(stream: impl AsFd, bytes: &mut [u8], files: &Files) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut along = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        stream,
        &mut [IoSliceMut::new(bytes)],
        &mut along,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in along.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptors.for_each(|descriptor| files.keep(descriptor.into()));
        }
    }
    Ok(message.bytes)
}

impl AsyncWrite for StreamWithFiles {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
