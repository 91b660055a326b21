//! The task that owns one connection: it moves frames in both directions, and keeps both ends'
//! attestation in force.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use attestation::connection::Role;
use bytes::BytesMut;
use printable::WithCauses;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_rustls::TlsStream;

use crate::buffers::Buffers;
use crate::clock;
use crate::collecting::{Collecting, Held};
use crate::error::{
    CloseReason, ConnectionError, EvidenceRefused, NoEvidence, ProtocolError, Stage,
};
use crate::facts::Handshaken;
use crate::frame::{self, Frame};
use crate::gate::{Gate, GateState};
use crate::message::{Demand, Hello, MAX_SHORT, Message, Request, VERSION};
use crate::parties::{Appraisal, Attester, EvidenceFuture};
use crate::rounds::{Demanded, Demanding};

/// One connection after its handshake.
pub(crate) struct Driver<IO, R> {
    pub(crate) tls: Tls<IO>,
    pub(crate) handshaken: Handshaken,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) attester: Arc<dyn Attester>,
    pub(crate) ours: Ours<R>,
    pub(crate) opened: oneshot::Sender<()>,
    /// Until when both ends have to have what they demand, by [`clock::now`].
    pub(crate) attested_by: Instant,
    /// How long the peer may leave bytes untaken, and an answer as a whole.
    pub(crate) sending: Duration,
}

/// What this end demands, and where its appraisals go.
pub(crate) enum Ours<R> {
    Nothing,
    Evidence {
        demanding: Demanding<R>,
        appraisals: watch::Sender<Option<R>>,
    },
}

/// The TLS connection, which both directions and the exporter need.
pub(crate) struct Tls<IO> {
    stream: Mutex<TlsStream<IO>>,
    /// A part of a frame may have been handed to TLS, and the rest not.
    within_a_frame: AtomicBool,
}

/// Bytes that are read at once.
const READ: usize = 64 * 1024;
/// How long the peer may take to end its side once both have sent all data.
const PEERS_CLOSE: Duration = Duration::from_secs(5);
/// How long the rest of frames may take when the application has gone, and then a close frame.
const CLOSING: Duration = Duration::from_secs(1);
/// Control messages that were read and not handled yet.
const INBOX: usize = 2;

impl<IO, R> Driver<IO, R>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
    R: Clone + Send + Sync + 'static,
{
    /// Serves the connection to its end.
    pub(crate) async fn run(self) -> Result<(), Arc<ConnectionError>> {
        let Self {
            tls,
            handshaken,
            buffers,
            attester,
            ours,
            opened,
            attested_by,
            sending,
        } = self;
        let (inbox, messages) = mpsc::channel(INBOX);
        let gate = Gate::default();
        let mut control = Control {
            tls: &tls,
            handshaken: &handshaken,
            buffers: &buffers,
            attester: &*attester,
            ours,
            theirs: None,
            making: None,
            judging: None,
            gate: &gate,
            opened: Some(opened),
            attested_by,
            sending,
        };
        let closed = Notify::new();
        let outcome = tokio::try_join!(
            async {
                tokio::select! {
                    read = read(&tls, &buffers, &gate, inbox) => read,
                    () = peers_close(&closed) => Ok(()),
                }
            },
            write(&tls, &buffers, &gate, sending, &closed),
            control.run(messages),
        );
        let outcome = match outcome {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = Arc::new(error);
                tracing::info!(error = %WithCauses(&error), "an attested connection ended");
                tls.close(match *error {
                    ConnectionError::Abandoned => Some(buffers.farewell()),
                    _ => error.to_tell(),
                })
                .await;
                Err(error)
            }
        };
        buffers.finish(outcome.as_ref().err().cloned());
        outcome
    }
}

/// Takes frames off the connection until the peer ends it.
async fn read<IO: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls<IO>,
    buffers: &Buffers,
    gate: &Gate,
    inbox: mpsc::Sender<Received>,
) -> Result<(), ConnectionError> {
    let mut from = tls;
    let mut received = BytesMut::with_capacity(READ);
    let mut message = Collecting::default();
    loop {
        while let Some(frame) = Frame::take(&mut received)? {
            match frame {
                Frame::Data(data) => {
                    gate.data()?;
                    buffers.receive(data)?;
                }
                Frame::End => {
                    gate.data()?;
                    buffers.receive_end()?;
                }
                Frame::Window(taken) => buffers.receive_window(taken)?,
                Frame::ControlPart(part) => {
                    message.add(&part, gate.message_limit())?;
                }
                Frame::ControlEnd(part) => {
                    message.add(&part, gate.message_limit())?;
                    let (bytes, held) = message.finish();
                    let whole = Message::from_bytes(&bytes)?;
                    drop(bytes);
                    // How the next frame is read depends on this message, so it has to be handled before.
                    // Where messages are not handled any more, an error of its own says why.
                    let (handled, is_handled) = oneshot::channel();
                    if inbox.send((whole, held, handled)).await.is_ok() {
                        let _ = is_handled.await;
                    }
                }
                Frame::Close(CloseReason::Done) if buffers.is_done() => return Ok(()),
                Frame::Close(reason) => return Err(ConnectionError::ClosedByPeer(reason)),
            }
        }
        received.reserve(READ / 2);
        if from.read_buf(&mut received).await? == 0 {
            return Err(ProtocolError::Truncated.into());
        }
    }
}

/// Sends what there is to send until both directions have ended.
async fn write<IO: AsyncRead + AsyncWrite + Unpin>(
    tls: &Tls<IO>,
    buffers: &Buffers,
    gate: &Gate,
    sending: Duration,
    closed: &Notify,
) -> Result<(), ConnectionError> {
    let mut out = tls;
    while let Some(outgoing) = poll_fn(|cx| poll_outgoing(buffers, cx)).await? {
        if !outgoing.data.is_empty() {
            gate.data()?;
        }
        let by = Instant::now() + sending;
        let by = outgoing.answer_by.map_or(by, |answer| answer.min(by));
        let sent = async {
            out.write_all(&outgoing.control).await?;
            if outgoing.answered {
                buffers.answer_was_sent();
            }
            out.write_all(&outgoing.data).await?;
            out.flush().await
        };
        let mut sent = pin!(sent);
        tls.within_a_frame.store(true, Ordering::Relaxed);
        let sent = async {
            tokio::select! {
                biased;
                sent = sent.as_mut() => Some(sent),
                at = buffers.abandoned() => timeout_at((at + CLOSING).into(), sent).await.ok(),
            }
        };
        timeout_at(by.into(), sent)
            .await
            .map_err(|_| ConnectionError::TooSlow(Stage::Sending))?
            .ok_or(ConnectionError::Abandoned)??;
        tls.within_a_frame.store(false, Ordering::Relaxed);
        if outgoing.end {
            buffers.end_was_sent();
        }
    }
    tls.close(Some(CloseReason::Done)).await;
    closed.notify_one();
    Ok(())
}

/// Waits for the peer's own close frame, but not for ever. Closing before it was read would reset the
/// connection, and the peer could lose the end of our data.
async fn peers_close(closed: &Notify) {
    closed.notified().await;
    sleep(PEERS_CLOSE).await;
}

fn poll_outgoing(
    buffers: &Buffers,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<crate::buffers::Outgoing>, ConnectionError>> {
    match buffers.poll_outgoing(cx) {
        Poll::Pending if buffers.was_abandoned().is_some() => {
            Poll::Ready(Err(ConnectionError::Abandoned))
        }
        Poll::Pending => Poll::Pending,
        Poll::Ready(outgoing) => Poll::Ready(Ok(outgoing)),
    }
}

/// A message, what it has of the allowance, and who waits until it was handled.
type Received = (Message, Held, oneshot::Sender<()>);

type Judged<R> = tokio::task::JoinHandle<Result<Appraisal<R>, EvidenceRefused>>;

/// The attestation of both ends.
struct Control<'a, IO, R> {
    tls: &'a Tls<IO>,
    handshaken: &'a Handshaken,
    buffers: &'a Buffers,
    attester: &'a dyn Attester,
    ours: Ours<R>,
    theirs: Option<Demanded>,
    making: Option<EvidenceFuture>,
    judging: Option<Judged<R>>,
    gate: &'a Gate,
    opened: Option<oneshot::Sender<()>>,
    attested_by: Instant,
    sending: Duration,
}

impl<IO, R> Control<'_, IO, R>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    R: Clone + Send + Sync + 'static,
{
    async fn run(&mut self, mut messages: mpsc::Receiver<Received>) -> Result<(), ConnectionError> {
        self.send(Message::Hello(Hello {
            version: VERSION,
            demand: match &self.ours {
                Ours::Nothing => Demand::Nothing,
                Ours::Evidence { demanding, .. } => demanding.demand().clone(),
            },
        }));
        loop {
            self.ask_if_due()?;
            self.open_if_done()?;
            let rest = self.rest();
            tokio::select! {
                message = messages.recv() => match message {
                    Some((message, held, handled)) => {
                        self.handle(message, held)?;
                        self.open_if_done()?;
                        let _ = handled.send(());
                    }
                    // The peer has ended its side.
                    None => return Ok(()),
                },
                evidence = made(&mut self.making) => {
                    self.making = None;
                    if let Some(theirs) = &mut self.theirs {
                        let answer = Message::Answer(theirs.answer(evidence, clock::now()));
                        let by = Instant::now() + self.sending;
                        self.buffers.send_answer(answer.to_bytes(), by);
                    }
                }
                judged = judged(&mut self.judging) => {
                    self.judging = None;
                    self.judge(judged?)?;
                }
                () = sleep(rest) => {}
            }
        }
    }

    fn send(&self, message: Message) {
        self.buffers.send_control(message.to_bytes());
    }

    fn ask_if_due(&mut self) -> Result<(), ConnectionError> {
        let Ours::Evidence { demanding, .. } = &mut self.ours else {
            return Ok(());
        };
        if let Some(request) = demanding.due(clock::now())? {
            self.send(Message::Request(request));
        }
        Ok(())
    }

    /// Lets data pass once both ends have what they demand.
    fn open_if_done(&mut self) -> Result<(), ConnectionError> {
        let now = clock::now();
        let (met, message_limit) = match &self.ours {
            Ours::Nothing => (true, MAX_SHORT),
            // An answer has its place behind the peer's hello alone.
            Ours::Evidence { demanding, .. }
                if demanding.expects_evidence() && self.theirs.is_some() =>
            {
                (demanding.is_met(now), demanding.demand().longest_answer())
            }
            Ours::Evidence { demanding, .. } => (demanding.is_met(now), MAX_SHORT),
        };
        let both = met && self.theirs.as_ref().is_some_and(Demanded::is_met);
        self.gate.set(GateState {
            data: both,
            until: match &self.ours {
                Ours::Nothing => None,
                Ours::Evidence { demanding, .. } => demanding.valid_until(),
            },
            message_limit,
        });
        if self.opened.is_some() && both {
            if let Some(opened) = self.opened.take() {
                // A caller that has gone drops its end of the buffers, too.
                let _ = opened.send(());
            }
        } else if self.opened.is_some() && now >= self.attested_by {
            return Err(ConnectionError::TooSlow(Stage::Attestation));
        }
        Ok(())
    }

    /// How long nothing has to be done if no message comes.
    fn rest(&self) -> Duration {
        let mut times = Vec::new();
        if self.opened.is_some() {
            times.push(self.attested_by);
        }
        if let Ours::Evidence { demanding, .. } = &self.ours {
            times.extend(demanding.next_time());
        }
        times
            .into_iter()
            .min()
            .map_or(IDLE, |time| time.saturating_duration_since(clock::now()))
    }

    fn handle(&mut self, message: Message, held: Held) -> Result<(), ConnectionError> {
        let now = clock::now();
        let name = message.name();
        if let Some(theirs) = &mut self.theirs
            && self.buffers.take_answer_sent()
        {
            theirs.answer_was_sent();
        }
        match (message, &mut self.theirs) {
            (Message::Hello(hello), theirs @ None) => {
                tracing::debug!(demand = ?hello.demand, "the peer's demand");
                *theirs = Some(Demanded::new(hello.demand));
                Ok(())
            }
            (Message::Request(request), Some(theirs)) => {
                theirs.asked(&request, now)?;
                let demand = theirs.demand().clone();
                let binding = self.binding(self.handshaken.role, &request)?;
                let evidence = self.attester.evidence(&demand, request.nonce, binding);
                self.making = Some(evidence);
                Ok(())
            }
            (Message::Answer(answer), Some(_)) => {
                let Ours::Evidence { demanding, .. } = &mut self.ours else {
                    return Err(ProtocolError::OutOfTurn(name).into());
                };
                if let Some((request, evidence)) = demanding.answered(answer, now)? {
                    let verifier = Arc::clone(demanding.verifier());
                    let binding = self.binding(self.handshaken.peer_role(), &request)?;
                    let peer = self.handshaken.peer.clone();
                    let span = tracing::Span::current();
                    self.judging = Some(tokio::task::spawn_blocking(move || {
                        let _of_this_connection = span.enter();
                        let _while_the_evidence_is_kept = held;
                        verifier.appraise(&evidence, &request.nonce, &binding, &peer)
                    }));
                }
                Ok(())
            }
            (Message::Accepted(accepted), Some(theirs)) => {
                theirs.peer_accepts(&accepted)?;
                tracing::debug!(valid_for_ms = accepted.valid_for_ms, "the peer accepts us");
                Ok(())
            }
            _ => Err(ProtocolError::OutOfTurn(name).into()),
        }
    }

    fn judge(
        &mut self,
        judged: Result<Appraisal<R>, EvidenceRefused>,
    ) -> Result<(), ConnectionError> {
        let appraisal = judged.map_err(ConnectionError::Refused)?;
        let Ours::Evidence {
            demanding,
            appraisals,
        } = &mut self.ours
        else {
            return Ok(());
        };
        let accepted = demanding.accepted(&appraisal, clock::now());
        appraisals.send_replace(Some(appraisal.result));
        if let Some(accepted) = accepted {
            self.send(Message::Accepted(accepted));
        }
        Ok(())
    }

    fn binding(
        &self,
        attester: Role,
        request: &Request,
    ) -> Result<attestation::Binding, ConnectionError> {
        self.handshaken
            .binding(attester, request, |label, context| {
                self.tls.export(label, context)
            })
            .map_err(ConnectionError::Tls)
    }
}

/// Nothing has to be done before a message comes.
const IDLE: Duration = Duration::from_secs(3600);

async fn made(making: &mut Option<EvidenceFuture>) -> Result<Vec<u8>, NoEvidence> {
    match making {
        Some(evidence) => evidence.await,
        None => std::future::pending().await,
    }
}

async fn judged<R>(
    judging: &mut Option<Judged<R>>,
) -> Result<Result<Appraisal<R>, EvidenceRefused>, ConnectionError> {
    match judging {
        Some(judging) => judging
            .await
            .map_err(|error| ConnectionError::Io(io::Error::other(error))),
        None => std::future::pending().await,
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Tls<IO> {
    pub(crate) fn new(stream: TlsStream<IO>) -> Self {
        Self {
            stream: Mutex::new(stream),
            within_a_frame: AtomicBool::new(false),
        }
    }

    /// Says why the connection ends, if that can be said, and ends this side of it.
    async fn close(&self, reason: Option<CloseReason>) {
        let mut out = self;
        let said = async {
            // Behind a part of a frame, its bytes would be taken for the rest of it.
            if let Some(reason) = reason
                && !self.within_a_frame.load(Ordering::Relaxed)
            {
                let mut frame = BytesMut::new();
                frame::put_close(&mut frame, reason);
                out.write_all(&frame).await?;
            }
            out.shutdown().await
        };
        // The peer may be gone; then it cannot be told.
        let _ = timeout(CLOSING, said).await;
    }

    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], rustls::Error> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stream {
            TlsStream::Client(stream) => {
                let connection = stream.get_ref().1;
                connection.export_keying_material([0; 32], label, Some(context))
            }
            TlsStream::Server(stream) => {
                let connection = stream.get_ref().1;
                connection.export_keying_material([0; 32], label, Some(context))
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut TlsStream<IO>>) -> T) -> T {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        act(Pin::new(&mut *stream))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for &Tls<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for &Tls<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
