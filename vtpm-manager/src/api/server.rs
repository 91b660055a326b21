//! Connections: who gets one, and for how long.

use std::sync::Arc;
use std::time::Duration;

use api_types::PROBLEM_JSON;
use axum::Router;
use axum::http::{Request, StatusCode};
use foreign_descriptors::Foreign;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use launch_measurement::{Files, StreamWithFiles};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Admitted};
use super::caller::{Caller, CallerClass};
use super::problem::ProblemResponse;
use super::{router, starting};
use crate::manager::{Manager, Startup};

/// Within this time a request's head must be there; then the connection is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way at the end are waited for this long; orders that were given are carried out
/// whether or not anybody hears of it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What is said to a caller for whom there is no room.
const TOO_MANY_CONNECTIONS: &str = "this user has as many connections as it may have at a time: end some, or \
                       try again in a moment";
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The API of a manager that starts and then serves.
#[derive(Debug)]
pub struct Api {
    /// What answers the next request, on whichever connection it comes.
    router: watch::Sender<Router>,
    allowed_uids: Vec<u32>,
    admission: Arc<Admission>,
}

impl Api {
    /// Answers "opening" to nearly everything.
    pub fn of_starting(startup: &Startup) -> Self {
        Self {
            router: watch::Sender::new(starting::router(startup)),
            allowed_uids: startup.config().allowed_uids.clone(),
            admission: Arc::default(),
        }
    }

    /// From the next request on, this manager answers.
    pub fn serve_from(&self, manager: &Arc<Manager>) {
        drop(self.router.send_replace(router(manager)));
    }

    /// Serves until `ending` is cancelled and the requests under way are answered, or were waited
    /// for long enough.
    pub async fn serve(&self, listener: UnixListener, ending: CancellationToken) {
        let connections = GracefulShutdown::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream, &connections),
                    Err(error) => {
                        tracing::warn!(%error, "a caller could not be let in");
                        sleep(PAUSE).await;
                    }
                },
                () = ending.cancelled() => break,
            }
        }
        // With those in its queue goes what they brought.
        if let Ok(listener) = listener.into_std() {
            drop(Foreign::from(listener));
        }
        if timeout(DRAIN_TIMEOUT, connections.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("a caller kept its connection to the end: it is cut off");
        }
    }

    /// Serves a connection in a task of its own, if there is room for one more of its kind.
    fn admit(&self, stream: UnixStream, connections: &GracefulShutdown) {
        let caller = Caller::of(&stream);
        match self
            .admission
            .admit(caller, caller.class(&self.allowed_uids))
        {
            Some(admitted) => self.attend(stream, caller, admitted, connections),
            None => {
                tracing::debug!(?caller, "turned away: it has too many connections");
                turn_away(StreamWithFiles::new(stream, None).stream());
            }
        }
    }

    fn attend(
        &self,
        stream: UnixStream,
        caller: Caller,
        admitted: Admitted,
        connections: &GracefulShutdown,
    ) {
        let router = self.router.subscribe();
        let files = Files::default();
        let may_call = caller.class(&self.allowed_uids) != CallerClass::Stranger;
        let stream = StreamWithFiles::new(stream, may_call.then(|| files.clone()));
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(caller);
            request.extensions_mut().insert(files.clone());
            let router = router.borrow().clone();
            let files = files.clone();
            async move {
                let response = TowerToHyperService::new(router).call(request).await;
                // Those of one request are not the next one's.
                files.close();
                response
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
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
        TOO_MANY_CONNECTIONS,
    );
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {PROBLEM_JSON}\r\nRetry-After: 1\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.try_write(response.as_bytes());
}
