//! Backends of an earlier manager: taken over, looked at, or ended.

use std::sync::Arc;
use std::time::Duration;

use backend_link::message::{FromBackend, PROTOCOL, Status, ToBackend};
use cert_chain::{Generation, VrotId};
use tokio::time::timeout;

use super::BackendError;
use super::connection::{Connection, Found, introduced};
use super::folder::RuntimeFolder;
use super::handle::Backend;
use super::order::{Observed, Role, STOP_DEADLINE};
use crate::background::Background;
use guarded_state::disk::StateBlob;

/// What a backend left that was ended without being taken over.
#[derive(Debug)]
pub struct Dismissed {
    /// Its last state.
    pub state: Option<StateBlob>,
    /// Whether it had answered a command whose state was not durable; `None` if it did not say.
    pub was_degraded: Option<bool>,
}

impl Backend {
    /// Takes over a backend that an earlier manager started and that answers within `patience`;
    /// `None` if it is gone.
    pub async fn adopt(
        background: &Arc<Background>,
        folder: RuntimeFolder,
        generation: Generation,
        role: Role,
        patience: Duration,
    ) -> Result<Option<Self>, BackendError> {
        let found = timeout(patience, introduced(&folder)).await;
        let found = found.unwrap_or_else(|_| Err(silent(&folder, patience)))?;
        let Some(Found {
            connection,
            process,
            status,
            early,
        }) = found
        else {
            return Ok(None);
        };
        let vrot = folder.vrot();
        // Before there were versions, it was the first.
        let version = status.protocol.unwrap_or(1);
        if version != PROTOCOL {
            return Err(BackendError::Version { vrot, version });
        }
        if !serves(&status, vrot, generation) {
            return Err(BackendError::Stranger { vrot });
        }
        // It may have been degraded all the while: evidence must not say otherwise meanwhile.
        let observed = Observed::of_status(&status);
        let line = (connection, process);
        let backend = Self::supervised(background, folder, line, early, role, observed);
        Ok(Some(backend))
    }

    /// What a backend says of itself, if it is alive and no manager serves it; changes nothing.
    pub async fn look(
        folder: &RuntimeFolder,
        patience: Duration,
    ) -> Result<Option<Observed>, BackendError> {
        let found = timeout(patience, introduced(folder)).await;
        let found = found.unwrap_or_else(|_| Err(silent(folder, patience)))?;
        Ok(found.map(|found| Observed::of_status(&found.status)))
    }

    /// Ends a backend of which nothing is known but its folder, as far as it is alive at all.
    /// Returns when it has ended, with the last state that it handed over, if it is one of this
    /// generation. It is not told that this is durable, for that is yet to come.
    pub async fn dismiss(
        folder: &RuntimeFolder,
        generation: Option<Generation>,
    ) -> Result<Dismissed, BackendError> {
        let (mut state, mut told) = (None, None);
        if let Some((mut connection, mut process)) = Connection::to_running(folder).await? {
            let gone = async {
                // If it does not take that, it is killed.
                for order in [ToBackend::Hello, ToBackend::Stop] {
                    let _ = connection.send(&order).await;
                }
                while let Ok(Some(message)) = connection.receive().await {
                    match message {
                        FromBackend::StateChanged { sequence, sealed } => {
                            state = Some(StateBlob::new(sequence, sealed.into()));
                        }
                        // Later ones are about what it does on this order.
                        FromBackend::Status(status) => drop(told.get_or_insert(status)),
                        _ => {}
                    }
                }
                process.ended().await;
            };
            if timeout(STOP_DEADLINE, gone).await.is_err() {
                process.kill();
                process.ended().await;
            }
        }
        folder.remove()?;
        let vrot = folder.vrot();
        let fits = matches!((&told, generation), (Some(status), Some(generation))
            if serves(status, vrot, generation));
        Ok(Dismissed {
            state: state.filter(|_| fits),
            was_degraded: told.map(|status| status.degraded),
        })
    }
}

fn serves(status: &Status, vrot: VrotId, generation: Generation) -> bool {
    let expected = (Some(*vrot.as_bytes()), generation.number());
    (status.vrot.map(<[u8; 16]>::from), status.generation) == expected
}

fn silent(folder: &RuntimeFolder, patience: Duration) -> BackendError {
    BackendError::Deadline {
        vrot: folder.vrot(),
        what: "tell its status",
        limit: patience,
    }
}
