//! One connection, from its handshake on, for as long as its certificate counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use cert_chain::VerifiedTenantCertificate;
use cert_chain::path::ChainError;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use printable::WithCauses;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::answer::AnswerDeadline;
use crate::authorities::{Authorities, now};
use crate::counts::{Counts, Refusal};
use crate::host::{Notice, TenantHost};
use crate::patient_stream::PatientStream;
use crate::places::{Entering, Places};
use crate::requests::Asking;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) places: Arc<Places>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) host: Arc<dyn TenantHost>,
    pub(crate) router: Router,
}

/// For a handshake as a whole.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Within this time a request's head must be there, also of the next one: then the connection is closed.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Within this time a client must take something of what it asked for.
const READ_PATIENCE: Duration = Duration::from_secs(30);
/// The longest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// The host's clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why a connection came to nothing.
enum Nothing {
    Handshake(String),
    Certificate(ChainError),
    Crowded,
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    entering: Entering,
    ending: CancellationToken,
) {
    let admitted = admit(&shared, stream, entering).await;
    let (stream, certificate, verified, place) = match admitted {
        Ok(admitted) => admitted,
        Err(nothing) => {
            shared.refused(from, nothing);
            return;
        }
    };
    shared.counts.admit();
    shared.host.note(Notice::Admitted {
        tenant: verified.tenant().clone(),
        certificate: verified.serial().clone(),
        address: from.ip(),
    });
    let deadline = AnswerDeadline::default();
    let asking = Asking {
        tenant: verified.tenant().clone(),
        deadline: deadline.clone(),
    };
    let router = shared.router.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        // Whatever the request says: nothing of it can be this.
        request.extensions_mut().insert(asking.clone());
        TowerToHyperService::new(router.clone()).call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(
            TokioIo::new(PatientStream::new(stream, READ_PATIENCE)),
            service,
        );
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, %from, "a tenant's connection ended early");
            }
        }
        error = end_of(&shared.authorities, &certificate, verified) => {
            shared.counts.refuse(Refusal::Ended);
            let reason = WithCauses(&error).to_string();
            tracing::info!(%from, reason, "a tenant's connection is ended: its certificate does not count any more");
        }
        () = deadline.passed() => {
            tracing::info!(%from, "a tenant's connection is ended: it takes too long to read an answer");
        }
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    drop(place);
}

type Admitted = (
    TlsStream<TcpStream>,
    CertificateDer<'static>,
    VerifiedTenantCertificate,
    crate::places::Place,
);

async fn admit(
    shared: &Shared,
    stream: TcpStream,
    entering: Entering,
) -> Result<Admitted, Nothing> {
    let acceptor = TlsAcceptor::from(Arc::clone(&shared.config));
    let stream = tokio::select! {
        accepted = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)) => match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Nothing::Handshake(error.to_string())),
            Err(_) => return Err(Nothing::Handshake("it takes too long".to_owned())),
        },
        () = entering.gave_way() => {
            let reason = "it took too long while others came: its place was needed";
            return Err(Nothing::Handshake(reason.to_owned()));
        }
    };
    let shown = stream.get_ref().1.peer_certificates();
    let Some(certificate) = shown.and_then(|shown| shown.first()).cloned() else {
        return Err(Nothing::Handshake("no certificate was shown".to_owned()));
    };
    let certificate = certificate.into_owned();
    let verified = shared.authorities.verify(&certificate);
    let verified = verified.map_err(Nothing::Certificate)?;
    let place = entering.admit(verified.tenant()).ok_or(Nothing::Crowded)?;
    Ok((stream, certificate, verified, place))
}

/// Waits until a certificate does not count any more: its end, that of the list that is demanded, or a
/// list that has it.
async fn end_of(
    authorities: &Authorities,
    certificate: &CertificateDer<'_>,
    mut verified: VerifiedTenantCertificate,
) -> ChainError {
    let mut changes = authorities.changes();
    loop {
        let left = verified
            .not_after()
            .as_secs()
            .saturating_sub(now().as_secs());
        let left = Duration::from_secs(left.saturating_add(1)).min(LONGEST_SLEEP);
        tokio::select! {
            () = sleep(left) => {}
            // The authorities live as long as this connection does.
            _ = changes.changed() => {}
        }
        match authorities.verify(certificate) {
            Ok(now) if now.tenant() == verified.tenant() => verified = now,
            Ok(_) => return ChainError::OtherIssuer,
            Err(error) => return error,
        }
    }
}

impl Shared {
    fn refused(&self, from: SocketAddr, nothing: Nothing) {
        let (refusal, reason) = match nothing {
            Nothing::Handshake(reason) => (Refusal::Handshake, reason),
            Nothing::Certificate(error) => (Refusal::Handshake, WithCauses(&error).to_string()),
            Nothing::Crowded => (
                Refusal::Crowded,
                "the tenant has as many connections as it may have".to_owned(),
            ),
        };
        self.counts.refuse(refusal);
        tracing::debug!(%from, reason, "somebody is not admitted to the API for tenants");
        self.host.note(Notice::Refused {
            address: from.ip(),
            reason,
        });
    }

    /// A place for a handshake, if there is one.
    pub(crate) fn enter(&self, from: SocketAddr) -> Option<Entering> {
        let entering = self.places.enter(from.ip(), Instant::now());
        if entering.is_none() {
            self.counts.refuse(Refusal::Crowded);
        }
        entering
    }
}
