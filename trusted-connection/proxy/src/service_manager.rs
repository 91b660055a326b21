//! What a proxy and its service manager tell each other.

use std::error::Error;
use std::io;

use printable::WithCauses;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

/// Tells the service manager, if there is one, that connections are taken (sd_notify(3)).
pub fn ready() {
    notify(NotifyState::Ready);
}

/// The same of connections that are not taken any more.
pub(crate) fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager is not told how it stands");
    }
}

/// At each SIGHUP has what was configured read anew. What cannot be used is told, and what was in force
/// before stays so. Must be called in a tokio runtime.
pub fn reload_at_hangup(
    reload: impl Fn() -> Result<(), Box<dyn Error + Send + Sync>> + Clone + Send + 'static,
) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match spawn_blocking(reload.clone()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(
                    error = %WithCauses(&*error),
                    "what was to be read anew cannot be used, and nothing is changed"
                ),
                Err(error) => tracing::error!(%error, "nothing is read anew"),
            }
        }
    });
    Ok(())
}
