//! How a proxy ends: first it takes no new connections, then those that are left are closed.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tells everybody when to stop. All clones are one.
#[derive(Clone, Debug)]
pub struct Stop {
    stopping: CancellationToken,
    closing: CancellationToken,
    drain: Duration,
}

impl Stop {
    /// From [`stop`](Self::stop) on, connections have this long to end by themselves.
    pub fn after(drain: Duration) -> Self {
        Self {
            stopping: CancellationToken::new(),
            closing: CancellationToken::new(),
            drain,
        }
    }

    /// The same, at SIGTERM or SIGINT; a second one ends the waiting. Must be called in a tokio runtime.
    pub fn at_signals(drain: Duration) -> io::Result<Self> {
        let stop = Self::after(drain);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signalled = stop.clone();
        tokio::spawn(async move {
            for token in [&signalled.stopping, &signalled.closing] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(stop)
    }

    /// No new connections from now on.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// How long connections may still live after [`stop`](Self::stop).
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// Waits until no new connections are to be taken.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Waits until those that are left are to be closed.
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Closes what is left.
    pub fn close(&self) {
        self.stopping.cancel();
        self.closing.cancel();
    }
}
