//! How many handshakes are worked on at a time.
//!
//! A signature of a TPM holds its thread. So what a peer sends in its handshake is handed to TLS under a
//! permit, which is given back as soon as TLS has worked on it: handshakes that wait for a permit hold no
//! thread, and end at their deadline; and a peer that stops in the middle of a handshake holds no permit.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// A transport below TLS, whose bytes wait for a permit until the handshake is done.
#[derive(Debug)]
pub(crate) struct InTurn<IO> {
    io: IO,
    turns: Option<PollSemaphore>,
    /// Read, and not handed over yet.
    held: BytesMut,
    /// For what was handed over last. Whoever reads, writes or flushes again has worked on that.
    permit: Option<OwnedSemaphorePermit>,
}

/// Bytes that wait for a permit at a time. A `ClientHello` is smaller.
const CHUNK: usize = 4096;

impl<IO> InTurn<IO> {
    pub(crate) fn new(io: IO, turns: Option<Arc<Semaphore>>) -> Self {
        Self {
            io,
            turns: turns.map(PollSemaphore::new),
            held: BytesMut::new(),
            permit: None,
        }
    }

    /// The handshake is done: nothing waits from now on.
    pub(crate) fn open(&mut self) {
        self.turns = None;
        self.permit = None;
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for InTurn<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.permit = None;
        if this.held.is_empty() {
            if this.turns.is_none() {
                return Pin::new(&mut this.io).poll_read(cx, buffer);
            }
            let mut chunk = [0; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            this.held.extend_from_slice(read.filled());
        }
        // The end of the data needs no work.
        if let (Some(turns), false) = (&mut this.turns, this.held.is_empty()) {
            this.permit = ready!(turns.poll_acquire(cx));
        }
        let length = this.held.len().min(buffer.remaining());
        buffer.put_slice(&this.held.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for InTurn<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.permit = None;
        Pin::new(&mut this.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.permit = None;
        Pin::new(&mut this.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.permit = None;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
