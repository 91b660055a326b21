//! Connections: who gets one, and for how long.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api_types::PROBLEM_JSON;
use axum::http::StatusCode;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::admission::{Admission, Admitted};
use super::caller::Caller;
use super::problem::ProblemResponse;
use super::router;
use crate::manager::Manager;

/// Who does not say within this time what he wants is disconnected.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Requests under way at the end are waited for this long; orders that were given are carried out
/// whether or not anybody hears of it.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// What is said to a caller for whom there is no room.
const NO_ROOM: &str = "this user has as many connections as it may have at a time: end some, or \
                       try again in a moment";
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` is ready and the requests under way are answered, or were waited
/// for long enough.
pub async fn serve(
    manager: Arc<Manager>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let acceptor = Acceptor {
        router: router(&manager),
        manager,
        admission: Arc::default(),
        connections: GracefulShutdown::new(),
    };
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => acceptor.admit(stream),
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be let in");
                    sleep(PAUSE).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    drop(listener);
    if timeout(LAST_PATIENCE, acceptor.connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("a caller kept its connection to the end: it is cut off");
    }
    Ok(())
}

struct Acceptor {
    router: Router,
    manager: Arc<Manager>,
    admission: Arc<Admission>,
    connections: GracefulShutdown,
}

impl Acceptor {
    /// Serves a connection in a task of its own, if there is room for one more of its kind.
    fn admit(&self, stream: UnixStream) {
        let caller = Caller::of(&stream);
        let standing = caller.standing(&self.manager.config().allowed_uids);
        match self.admission.admit(caller, standing) {
            Some(admitted) => self.attend(stream, caller, admitted),
            None => {
                tracing::debug!(?caller, "turned away: it has too many connections");
                turn_away(&stream);
            }
        }
    }

    fn attend(&self, stream: UnixStream, caller: Caller, admitted: Admitted) {
        let service = TowerToHyperService::new(self.router.clone().layer(Extension(caller)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, ?caller, "a connection ended early");
            }
            drop(admitted);
        });
    }
}

/// Says so in one piece, without waiting and without having read anything: it fits into the
/// buffer of a new connection.
fn turn_away(stream: &UnixStream) {
    let ProblemResponse(problem) = ProblemResponse::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too-many-connections",
        NO_ROOM,
    );
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {PROBLEM_JSON}\r\nRetry-After: 1\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.try_write(response.as_bytes());
}
