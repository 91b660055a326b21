//! What stands between the application and the task that owns the connection: data on their way in
//! both directions, bounded.
//!
//! The receiver always takes frames off the connection, so that control messages never stand behind
//! data that an application does not read. Therefore the sender has a window: it sends no more data
//! than the receiver has room for.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;
use tokio::sync::Notify;

use crate::error::{CloseReason, ConnectionError, ProtocolError};
use crate::frame::{self, HEADER, MAX_BODY};

/// Room for data that the application has not read yet.
pub(crate) const WINDOW: usize = 256 * 1024;
/// Taken data are reported when they are so many: not with every small read.
const REPORT: usize = WINDOW / 4;
/// Frames with less data are put together.
const SMALL: usize = 2048;
/// Data that wait to be sent.
const SEND_ROOM: usize = 128 * 1024;

/// Both directions of one connection.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    state: Mutex<State>,
    broken: Notify,
    abandoned: Notify,
}

#[derive(Debug)]
struct State {
    received: VecDeque<BytesMut>,
    /// Bytes in `received`.
    waiting: usize,
    /// Bytes that the application took and the peer does not know of yet.
    taken: usize,
    received_end: bool,
    reader: Option<Waker>,

    /// Frames with data, ready to be sent.
    outgoing: BytesMut,
    /// What the peer has room for.
    credit: usize,
    end: End,
    writer: Option<Waker>,

    /// Parts of control messages, in order. There are few: the peer cannot make this end answer faster
    /// than it takes answers.
    control: VecDeque<Control>,
    answer: Answer,
    driver: Option<Waker>,
    /// The connection has ended, and why: `None` inside if both ends wanted it.
    ended: Option<Option<Arc<ConnectionError>>>,
    /// When the application dropped the stream.
    abandoned: Option<Instant>,
    /// What the peer is told of that.
    farewell: CloseReason,
}

/// How far the end of our data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The application may still write.
    Open,
    /// The frame that says so is among those to be sent.
    Queued,
    /// It was handed to TLS.
    Sent,
}

/// What is left of a control message.
#[derive(Debug)]
enum Control {
    Short(Bytes),
    /// An answer to the peer's request.
    Answer(Bytes),
}

/// How far the answer to the peer's last request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing has to be said of one.
    None,
    /// It has to be sent as a whole until then.
    Sending { by: Instant },
    /// Its last part was handed to TLS.
    Sent,
}

/// What the driver has to send next.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Frames of control messages.
    pub(crate) control: BytesMut,
    /// Frames of data, which come behind them.
    pub(crate) data: BytesMut,
    /// The last part of an answer is among them.
    pub(crate) answered: bool,
    /// The end of our data is among them.
    pub(crate) end: bool,
    /// Until when they have to be sent because of an answer.
    pub(crate) answer_by: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            received: VecDeque::new(),
            waiting: 0,
            taken: 0,
            received_end: false,
            reader: None,
            outgoing: BytesMut::new(),
            credit: WINDOW,
            end: End::Open,
            writer: None,
            control: VecDeque::new(),
            answer: Answer::None,
            driver: None,
            ended: None,
            abandoned: None,
            farewell: CloseReason::Abandoned,
        }
    }
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The application's side.

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let before = buffer.remaining();
        while buffer.remaining() > 0
            && let Some(first) = state.received.front_mut()
        {
            let length = first.len().min(buffer.remaining());
            buffer.put_slice(&first.split_to(length));
            if first.is_empty() {
                state.received.pop_front();
            }
        }
        let read = before - buffer.remaining();
        if read > 0 {
            state.waiting -= read;
            state.taken += read;
            if state.taken >= REPORT && !state.received_end {
                wake(&mut state.driver);
            }
            return Poll::Ready(Ok(()));
        }
        if before == 0 || state.received_end {
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(broken(ended)));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(broken(ended)));
        }
        if state.end != End::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut written = 0;
        while written < data.len() {
            let room = SEND_ROOM.saturating_sub(state.outgoing.len() + HEADER);
            let length = (data.len() - written)
                .min(MAX_BODY)
                .min(room)
                .min(state.credit);
            let Some(part) = data
                .get(written..written + length)
                .filter(|part| !part.is_empty())
            else {
                break;
            };
            frame::put_data(&mut state.outgoing, part);
            state.credit -= length;
            written += length;
        }
        if written > 0 {
            wake(&mut state.driver);
            return Poll::Ready(Ok(written));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready once all data were handed to TLS.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(match ended {
                None => Ok(()),
                ended @ Some(_) => Err(broken(ended)),
            });
        }
        if state.outgoing.is_empty() {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready once the end of our data was handed to TLS; the other direction goes on.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(match ended {
                None => Ok(()),
                ended @ Some(_) => Err(broken(ended)),
            });
        }
        match state.end {
            End::Sent => return Poll::Ready(Ok(())),
            End::Queued => {}
            End::Open => {
                frame::put_end(&mut state.outgoing);
                state.end = End::Queued;
                wake(&mut state.driver);
            }
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What the peer is told if the application drops the stream now.
    pub(crate) fn set_farewell(&self, reason: CloseReason) {
        self.lock().farewell = reason;
    }

    pub(crate) fn farewell(&self) -> CloseReason {
        self.lock().farewell
    }

    /// The application dropped the stream.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned.get_or_insert_with(Instant::now);
        wake(&mut state.driver);
        drop(state);
        self.abandoned.notify_waiters();
    }

    /// Lets go of the error with which the connection ended, for the one caller that is told.
    pub(crate) fn forget_end(&self) {
        self.lock().ended = Some(None);
    }

    // The driver's side.

    pub(crate) fn receive(&self, data: BytesMut) -> Result<(), ProtocolError> {
        let mut state = self.lock();
        if state.received_end {
            return Err(ProtocolError::DataAfterEnd);
        }
        if state.waiting + state.taken + data.len() > WINDOW {
            return Err(ProtocolError::Window);
        }
        state.waiting += data.len();
        match state.received.back_mut() {
            // Many small frames must not cost more memory than few large ones.
            Some(last) if data.len() < SMALL && last.len() < MAX_BODY => {
                last.extend_from_slice(&data);
            }
            _ => state.received.push_back(data),
        }
        wake(&mut state.reader);
        Ok(())
    }

    pub(crate) fn receive_end(&self) -> Result<(), ProtocolError> {
        let mut state = self.lock();
        if state.received_end {
            return Err(ProtocolError::DataAfterEnd);
        }
        state.received_end = true;
        wake(&mut state.reader);
        wake(&mut state.driver);
        Ok(())
    }

    pub(crate) fn receive_window(&self, taken: u32) -> Result<(), ProtocolError> {
        let mut state = self.lock();
        let credit = usize::try_from(taken)
            .ok()
            .filter(|taken| *taken > 0)
            .and_then(|taken| state.credit.checked_add(taken))
            .filter(|credit| *credit <= WINDOW)
            .ok_or(ProtocolError::Window)?;
        state.credit = credit;
        wake(&mut state.writer);
        Ok(())
    }

    pub(crate) fn send_control(&self, message: Bytes) {
        let mut state = self.lock();
        state.control.push_back(Control::Short(message));
        wake(&mut state.driver);
    }

    /// Sends an answer, which the peer has to take as a whole until then.
    pub(crate) fn send_answer(&self, message: Bytes, by: Instant) {
        let mut state = self.lock();
        state.answer = Answer::Sending { by };
        state.control.push_back(Control::Answer(message));
        wake(&mut state.driver);
    }

    /// The last part of an answer was handed to TLS.
    pub(crate) fn answer_was_sent(&self) {
        self.lock().answer = Answer::Sent;
    }

    /// Whether an answer was sent since this was asked last.
    pub(crate) fn take_answer_sent(&self) -> bool {
        let mut state = self.lock();
        let is_sent = state.answer == Answer::Sent;
        if is_sent {
            state.answer = Answer::None;
        }
        is_sent
    }

    /// Waits for something to send; `None` once both directions have ended.
    pub(crate) fn poll_outgoing(&self, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        let mut state = self.lock();
        let mut control = BytesMut::new();
        if state.taken >= REPORT {
            let taken = u32::try_from(state.taken).unwrap_or(u32::MAX);
            frame::put_window(&mut control, taken);
            state.taken = 0;
        }
        let mut answered = false;
        if let Some(message) = state.control.front_mut() {
            let (is_answer, rest) = match message {
                Control::Short(rest) => (false, rest),
                Control::Answer(rest) => (true, rest),
            };
            if frame::put_control_part(&mut control, rest) {
                answered = is_answer;
                state.control.pop_front();
            }
        }
        let data = state.outgoing.split();
        if control.is_empty() && data.is_empty() {
            if state.end == End::Sent && state.received_end {
                return Poll::Ready(None);
            }
            state.driver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        wake(&mut state.writer);
        Poll::Ready(Some(Outgoing {
            control,
            data,
            answered,
            end: state.end == End::Queued,
            answer_by: match state.answer {
                Answer::Sending { by } => Some(by),
                Answer::None | Answer::Sent => None,
            },
        }))
    }

    pub(crate) fn end_was_sent(&self) {
        let mut state = self.lock();
        state.end = End::Sent;
        wake(&mut state.writer);
    }

    /// Whether both ends have sent all their data.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.lock();
        state.end == End::Sent && state.received_end
    }

    /// When the application gave the connection up, if both directions had not ended before.
    pub(crate) fn was_abandoned(&self) -> Option<Instant> {
        let state = self.lock();
        let both_end = state.received_end && state.end != End::Open;
        state.abandoned.filter(|_| !both_end)
    }

    /// Waits until the application gives the connection up before both directions have ended.
    pub(crate) async fn abandoned(&self) -> Instant {
        loop {
            let abandoned = self.abandoned.notified();
            if let Some(at) = self.was_abandoned() {
                return at;
            }
            abandoned.await;
        }
    }

    /// The connection has ended. What was received before stays readable, unless its sender's
    /// appraisal has ended or was refused.
    pub(crate) fn finish(&self, error: Option<Arc<ConnectionError>>) {
        let mut state = self.lock();
        if matches!(
            error.as_deref(),
            Some(ConnectionError::AppraisalEnded | ConnectionError::Refused(_))
        ) {
            state.received.clear();
            state.waiting = 0;
            // What came before the end is not all there, so neither is the end.
            state.received_end = false;
        }
        state.ended = Some(error);
        wake(&mut state.reader);
        wake(&mut state.writer);
        self.broken.notify_waiters();
    }

    /// The error with which the connection has ended, once it has.
    pub(crate) async fn broken(&self) -> Arc<ConnectionError> {
        loop {
            let ended = self.broken.notified();
            if let Some(Some(error)) = &self.lock().ended {
                return Arc::clone(error);
            }
            ended.await;
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn broken(ended: &Option<Arc<ConnectionError>>) -> io::Error {
    match ended {
        Some(error) => io::Error::new(io::ErrorKind::ConnectionAborted, Arc::clone(error)),
        None => io::ErrorKind::BrokenPipe.into(),
    }
}
