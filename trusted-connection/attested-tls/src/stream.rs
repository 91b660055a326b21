//! The data of an attested connection, as any other stream.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;

use crate::buffers::Buffers;
use crate::error::{CloseReason, ConnectionError, ProtocolError};

/// The data stream of a connection whose ends have what they demanded of each other.
///
/// There is no other way to get one than [`connect`](crate::connect) and [`accept`](crate::accept).
/// Dropping it gives the connection up; [`shutdown`](tokio::io::AsyncWriteExt::shutdown) ends this
/// direction and leaves the other.
#[derive(Debug)]
pub struct AttestedStream {
    buffers: Arc<Buffers>,
    driver: JoinHandle<Result<(), Arc<ConnectionError>>>,
}

impl AttestedStream {
    pub(crate) fn new(
        buffers: Arc<Buffers>,
        driver: JoinHandle<Result<(), Arc<ConnectionError>>>,
    ) -> Self {
        Self { buffers, driver }
    }

    /// Why the connection was never open.
    pub(crate) async fn failed(mut self) -> ConnectionError {
        match (&mut self.driver).await {
            Ok(Err(error)) => {
                self.buffers.forget_end();
                Arc::try_unwrap(error)
                    .unwrap_or_else(|shared| ConnectionError::Io(io::Error::other(shared)))
            }
            Ok(Ok(())) => ConnectionError::Protocol(ProtocolError::Truncated),
            Err(error) => ConnectionError::Io(io::Error::other(error)),
        }
    }

    /// Gives the connection up, tells the peer so, and waits until everything about it is cleared away.
    pub async fn give_up(self) {
        self.give_up_because(CloseReason::Abandoned).await;
    }

    /// The same for a reason that the peer is told.
    pub async fn give_up_because(self, why: CloseReason) {
        self.buffers.set_farewell(why);
        self.buffers.abandon();
        // Why it ended is known.
        let _ = self.ended().await;
    }

    /// Waits until the connection cannot be used any more because of an error: also while nobody reads
    /// or writes. It never completes for a connection that ends by its ends' will.
    pub fn broken(&self) -> impl Future<Output = Arc<ConnectionError>> + Send + use<> {
        let buffers = Arc::clone(&self.buffers);
        async move { buffers.broken().await }
    }

    /// Waits until the connection has ended and everything about it is cleared away: `Ok` if both
    /// ends had sent all their data.
    pub async fn ended(mut self) -> Result<(), Arc<ConnectionError>> {
        match (&mut self.driver).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Arc::new(ConnectionError::Io(io::Error::other(error)))),
        }
    }
}

impl Drop for AttestedStream {
    fn drop(&mut self) {
        self.buffers.abandon();
    }
}

impl AsyncRead for AttestedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.buffers.poll_read(cx, buffer)
    }
}

impl AsyncWrite for AttestedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.buffers.poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffers.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffers.poll_shutdown(cx)
    }
}
