//! Making an attested connection, from either end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::connection::Role;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout_at;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::Instrument;

use crate::buffers::Buffers;
use crate::clock;
use crate::driver::{Driver, Ours, Tls};
use crate::error::{ConnectionError, Stage, TlsFault};
use crate::facts::Handshaken;
use crate::parties::{Attester, Demanded, Demands, Peer};
use crate::rounds::Demanding;
use crate::stream::AttestedStream;
use crate::tls::{ClientTls, ServerTls};
use crate::turns::InTurn;

/// A connection whose ends have what they demanded of each other.
#[derive(Debug)]
pub struct Attested<R> {
    /// The data.
    pub stream: AttestedStream,
    /// The other end, as the handshake authenticated it.
    pub peer: Peer,
    /// What is known about it.
    pub appraisal: R,
    /// What later appraisals find.
    pub appraisals: watch::Receiver<Option<R>>,
}

/// How long a peer is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the handshake is done.
    pub handshake: Duration,
    /// From then on, until both ends have what they demand.
    pub attestation: Duration,
    /// Until bytes that were sent are taken, and an answer with evidence as a whole. An application that
    /// does not read is no reason: its end takes them all the same.
    pub sending: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            attestation: Duration::from_secs(60),
            sending: Duration::from_secs(60),
        }
    }
}

/// Makes an attested connection out of one that this end opened. `name` is sent to the server, and
/// what the certificate has to say is up to the verifier in `tls`.
pub async fn connect<IO, D>(
    io: IO,
    tls: &ClientTls,
    name: ServerName<'static>,
    attester: Arc<dyn Attester>,
    demands: D,
    deadlines: Deadlines,
) -> Result<Attested<D::Result>, ConnectionError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Demands,
{
    let (config, showing) = tls.of_a_connection();
    let handshake = TlsConnector::from(config).connect(name, io);
    let until = Instant::now() + deadlines.handshake;
    let stream = timeout_at(until.into(), handshake)
        .await
        .map_err(|_| ConnectionError::TooSlow(Stage::Handshake))?
        .map_err(ConnectionError::Io)?;
    let shown = showing.and_then(|showing| showing.identity());
    let handshaken =
        Handshaken::of(stream.get_ref().1, Role::Client, shown).map_err(ConnectionError::Tls)?;
    attest(
        TlsStream::Client(stream),
        handshaken,
        attester,
        demands,
        deadlines,
    )
    .await
}

/// Makes an attested connection out of one that this end accepted.
pub async fn accept<IO, D>(
    io: IO,
    tls: &ServerTls,
    attester: Arc<dyn Attester>,
    demands: D,
    deadlines: Deadlines,
) -> Result<Attested<D::Result>, ConnectionError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Demands,
{
    let io = InTurn::new(io, tls.turns.clone());
    let handshake = TlsAcceptor::from(Arc::clone(&tls.config)).accept(io);
    let until = Instant::now() + deadlines.handshake;
    let mut stream = timeout_at(until.into(), handshake)
        .await
        .map_err(|_| ConnectionError::TooSlow(Stage::Handshake))?
        .map_err(ConnectionError::Io)?;
    let (io, session) = stream.get_mut();
    io.open();
    if session.early_data().is_some() {
        return Err(ConnectionError::Tls(TlsFault::EarlyData));
    }
    let handshaken = Handshaken::of(stream.get_ref().1, Role::Server, Some(tls.identity))
        .map_err(ConnectionError::Tls)?;
    attest(
        TlsStream::Server(stream),
        handshaken,
        attester,
        demands,
        deadlines,
    )
    .await
}

async fn attest<IO, D>(
    stream: TlsStream<IO>,
    handshaken: Handshaken,
    attester: Arc<dyn Attester>,
    demands: D,
    deadlines: Deadlines,
) -> Result<Attested<D::Result>, ConnectionError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: Demands,
{
    let now = clock::now();
    let buffers = Arc::<Buffers>::default();
    let peer = handshaken.peer.clone();
    let (opened, open) = oneshot::channel();
    let (sender, mut appraisals) = watch::channel(None);
    let ours = match demands.demanded() {
        Demanded::Nothing(result) => {
            sender.send_replace(Some(result));
            Ours::Nothing
        }
        Demanded::Evidence(verifier) => Ours::Evidence {
            demanding: Demanding::new(verifier, now),
            appraisals: sender,
        },
    };
    let driver = Driver {
        tls: Tls::new(stream),
        handshaken,
        buffers: Arc::clone(&buffers),
        attester,
        ours,
        opened,
        attested_by: now + deadlines.attestation,
        sending: deadlines.sending,
    };
    // What the task says belongs to the same connection as what its opener says.
    let driver = tokio::spawn(driver.run().in_current_span());
    // Dropped before the connection is open, it ends the task.
    let stream = AttestedStream::new(buffers, driver);
    let is_open = open.await.is_ok();
    let appraisal = appraisals.borrow_and_update().clone();
    match appraisal {
        Some(appraisal) if is_open => Ok(Attested {
            stream,
            peer,
            appraisal,
            appraisals,
        }),
        _ => Err(stream.failed().await),
    }
}
