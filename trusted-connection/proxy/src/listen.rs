//! Taking connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

use crate::peer::Peer;
use crate::places::{Limits, Place, Places};
use crate::service_manager;
use crate::stop::Stop;

/// A connection that was taken.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its place among the connections. Until it is [kept](Place::keep), it may have to give way: then
    /// its [`Handler::handle`] is dropped.
    pub place: Place,
    /// When to end it.
    pub stop: Stop,
}

/// What is done with connections.
pub trait Handler: Send + Sync + 'static {
    /// Serves a connection to its end. All that it owns has to be released by being dropped: a
    /// connection that gives way, and one that outlives a [`Stop`], is ended by that.
    fn handle(&self, connection: Accepted) -> impl Future<Output = ()> + Send;

    /// There is no place for a connection: it is closed unless something is to be said. Must not wait.
    fn refuse(&self, stream: TcpStream) {
        drop(stream);
    }
}

/// How long connections that a [`Stop`] closes may take to say so to their peers.
const FAREWELL: Duration = Duration::from_secs(2);
/// Before the next attempt when the system has nothing left to accept connections with.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Takes connections and has them served, until it is told to stop; then waits for those that are
/// open.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    limits: Limits,
    stop: &Stop,
    handler: Arc<H>,
) {
    let places = Places::new(limits);
    let tasks = TaskTracker::new();
    let mut number: u64 = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.stopping() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                recover(&error, &places).await;
                continue;
            }
        };
        let peer = Peer::from(address.ip());
        let Some(place) = places.take(peer) else {
            tracing::warn!(%peer, connections = places.count(), "a connection is refused: there are too many");
            handler.refuse(stream);
            continue;
        };
        number = number.wrapping_add(1);
        let connection = Accepted {
            stream,
            address,
            place,
            stop: stop.clone(),
        };
        let span = info_span!("connection", number, %peer, from = %address);
        tasks.spawn(attend(Arc::clone(&handler), connection).instrument(span));
    }
    drop(listener);
    service_manager::stopping();
    tasks.close();
    drain(&tasks, stop).await;
}

/// Serves one connection, unless it has to give way or to end.
async fn attend<H: Handler>(handler: Arc<H>, connection: Accepted) {
    let gave_way = connection.place.token();
    let stop = connection.stop.clone();
    tokio::select! {
        () = handler.handle(connection) => {}
        () = gave_way.cancelled() => tracing::info!("gave way to a new connection"),
        () = async { stop.closing().await; sleep(FAREWELL).await } => {
            tracing::info!("cut off at the end");
        }
    }
}

/// An error of accepting is one of the connection (which its peer gave up), or of the system's
/// means. Neither is a reason to serve nobody any more; but what has run out does not come back by
/// asking at once again.
async fn recover(error: &io::Error, places: &Places) {
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    ) {
        tracing::debug!(%error, "a connection ended before it was taken");
        return;
    }
    let gave_up_one = places.give_up_one();
    tracing::warn!(%error, gave_up_one, "no connections can be taken at the moment");
    sleep(EXHAUSTED).await;
}

async fn drain(tasks: &TaskTracker, stop: &Stop) {
    if tasks.is_empty() {
        return;
    }
    let seconds = stop.drain().as_secs();
    tracing::info!(
        connections = tasks.len(),
        seconds,
        "stopping: waiting for open connections to end"
    );
    let ended = async {
        tokio::select! {
            () = tasks.wait() => true,
            () = stop.closing() => false,
        }
    };
    if timeout(stop.drain(), ended).await != Ok(true) {
        tracing::warn!(
            connections = tasks.len(),
            "connections are closed that have not ended"
        );
        stop.close();
        // Each is dropped by then.
        tasks.wait().await;
    }
}
