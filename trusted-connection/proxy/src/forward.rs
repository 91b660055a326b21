//! Moving data between two streams, in both directions at once.
//!
//! Either direction can end long before the other. What a writer does not take is not read, so a slow
//! reader slows its peer's writer and nobody else. A pair that carries nothing holds no memory: data are
//! read into a buffer that the thread has, and only what could not be written is kept.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that were read at one side and written at the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the first stream to the second.
    pub from_first: u64,
    /// From the second stream to the first.
    pub from_second: u64,
}

/// One of two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

/// Data cannot be moved any more.
#[derive(Debug, thiserror::Error)]
#[error("one of the two streams failed")]
pub struct Broken {
    /// Which.
    pub side: Side,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Bytes that are moved at once.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// What is read is usually written at once, so one buffer serves all connections of a thread.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Moves data until both directions have ended, or one of the streams fails. `traffic` counts.
pub async fn forward<A, B>(
    first: &mut A,
    second: &mut B,
    traffic: &mut Traffic,
) -> Result<(), Broken>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Direction::default();
    let mut back = Direction::default();
    poll_fn(|cx| {
        let one = there.poll(cx, first, second, &mut traffic.from_first);
        let one = one.map_err(|fault| fault.at(Side::First, Side::Second))?;
        let other = back.poll(cx, second, first, &mut traffic.from_second);
        let other = other.map_err(|fault| fault.at(Side::Second, Side::First))?;
        match (one, other) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One of the two directions.
#[derive(Debug, Default)]
struct Direction {
    /// What was read and not written yet.
    rest: Vec<u8>,
    written: usize,
    unflushed: bool,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Open,
    /// There is nothing more to read.
    Ending,
    Ended,
}

enum Fault {
    Read(io::Error),
    Write(io::Error),
}

impl Fault {
    fn at(self, reader: Side, writer: Side) -> Broken {
        match self {
            Self::Read(source) => Broken {
                side: reader,
                source,
            },
            Self::Write(source) => Broken {
                side: writer,
                source,
            },
        }
    }
}

impl Direction {
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        loop {
            while let Some(rest) = self
                .rest
                .get(self.written..)
                .filter(|rest| !rest.is_empty())
            {
                let length = ready!(write(cx, writer, rest))?;
                self.written += length;
                self.unflushed = true;
                *moved += length as u64;
            }
            self.rest = Vec::new();
            self.written = 0;
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Fault::Write)?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            let mut buffer = BUFFER.take();
            buffer.resize(CHUNK, 0);
            let polled = self.move_on(cx, reader, writer, &mut buffer, moved);
            BUFFER.set(buffer);
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Fault::Write)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads once, and writes what the writer takes of it at once.
    fn move_on<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        buffer: &mut [u8],
        moved: &mut u64,
    ) -> Poll<Result<(), Fault>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut buffer)).map_err(Fault::Read)?;
        let mut read = buffer.filled();
        if read.is_empty() {
            self.state = State::Ending;
        }
        while !read.is_empty() {
            match write(cx, writer, read) {
                Poll::Ready(length) => {
                    let length = length?;
                    self.unflushed = true;
                    *moved += length as u64;
                    read = read.get(length..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.rest = read.to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn write<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    writer: &mut W,
    data: &[u8],
) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(writer).poll_write(cx, data)) {
        Ok(0) => Poll::Ready(Err(Fault::Write(io::ErrorKind::WriteZero.into()))),
        Ok(length) => Poll::Ready(Ok(length)),
        Err(error) => Poll::Ready(Err(Fault::Write(error))),
    }
}
