//! Connections: who gets one, and for how long.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::caller::Caller;
use super::router;
use crate::manager::Manager;

/// Who does not say within this time what he wants is disconnected.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// Requests under way at the end are waited for this long; orders that were given are carried out
/// whether or not anybody hears of it.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// Each launch hook holds one.
const MAX_CALLERS: usize = 4096;
/// Strangers are told why they are not served, so many at a time.
const MAX_STRANGERS: usize = 16;
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the API until `shutdown` is ready and the requests under way are answered, or were waited
/// for long enough.
pub async fn serve(
    manager: Arc<Manager>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let door = Door {
        router: router(&manager),
        manager,
        callers: Arc::new(Semaphore::new(MAX_CALLERS)),
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        connections: GracefulShutdown::new(),
    };
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => door.admit(stream),
                Err(error) => {
                    tracing::warn!(%error, "a caller could not be let in");
                    sleep(PAUSE).await;
                }
            },
            () = &mut shutdown => break,
        }
    }
    drop(listener);
    if timeout(LAST_PATIENCE, door.connections.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("a caller kept its connection to the end: it is cut off");
    }
    Ok(())
}

struct Door {
    router: Router,
    manager: Arc<Manager>,
    callers: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    connections: GracefulShutdown,
}

impl Door {
    /// Serves a connection in a task of its own, if there is room for one more of its kind.
    fn admit(&self, stream: UnixStream) {
        let caller = Caller::of(&stream);
        let room = if caller.is_allowed(&self.manager.config().allowed_uids) {
            &self.callers
        } else {
            &self.strangers
        };
        let Ok(place) = Arc::clone(room).try_acquire_owned() else {
            tracing::debug!(?caller, "turned away: there are too many of them");
            return;
        };
        self.attend(stream, caller, place);
    }

    fn attend(&self, stream: UnixStream, caller: Caller, place: OwnedSemaphorePermit) {
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
            drop(place);
        });
    }
}
