//! Programs that launchers take for swtpm hand over to the manager here, on a socket of its own:
//! descriptors come along, which HTTP cannot carry.
//!
//! | file | what |
//! |---|---|
//! | `socket.rs` | the socket, and packets on it |
//! | `presented.rs` | what a folder, or the file in it, is, by the kernel's word |
//! | `conversation.rs` | one connection: a set-up, or the life of a vRoT |
//! | `claims.rs` | for which vRoTs a process stands |
//! | `unattended.rs` | vRoTs whose process has gone while the manager was away |

mod claims;
mod conversation;
mod presented;
mod socket;
mod unattended;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cert_chain::VrotId;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vrot_handover::message::FromManager;

use crate::audit::{Actor, Event};
use crate::manager::Manager;
use crate::rate_limit::Quota;

use claims::Claims;
use conversation::Conversation;
use socket::Connection;

pub use socket::Listener;

/// Where programs hand over.
#[derive(Debug)]
pub struct Handover {
    manager: Arc<Manager>,
    /// vRoTs for which a process stands.
    attended: Arc<Claims<VrotId>>,
    /// Folders that are being set up, each with the user who does.
    folders: Arc<Claims<(u32, String)>>,
    /// Connections that have not said yet which vRoT they are about.
    beginning: Arc<Semaphore>,
    refusals: Mutex<Quota>,
}

/// Whoever is admitted is trusted with vRoTs of folders, but makes no more work than that.
const MAX_BEGINNING: usize = 128;
const REFUSALS_PER_MINUTE: u32 = 12;
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Stops that are under way when the manager ends.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

impl Handover {
    /// For this manager.
    pub fn of(manager: &Arc<Manager>) -> Arc<Self> {
        let refusals = Quota::per_minute(REFUSALS_PER_MINUTE, Instant::now());
        Arc::new(Self {
            manager: Arc::clone(manager),
            attended: Arc::default(),
            folders: Arc::default(),
            beginning: Arc::new(Semaphore::new(MAX_BEGINNING)),
            refusals: Mutex::new(refusals),
        })
    }

    /// Listens. A socket that a dead manager left is replaced.
    pub fn listen(path: &Path) -> io::Result<Listener> {
        Listener::bind(path)
    }

    /// Serves until `ending` is cancelled. vRoTs go on after that, and their processes look for the
    /// next manager.
    pub async fn serve(self: Arc<Self>, listener: Listener, ending: CancellationToken) {
        let tasks = TaskTracker::new();
        let unattended = unattended::stop(Arc::clone(&self));
        let sweeping = ending.clone();
        tasks.spawn(async move { sweeping.run_until_cancelled_owned(unattended).await });
        while let Some(accepted) = ending.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok(connection) => {
                    let (handover, ending) = (Arc::clone(&self), ending.clone());
                    tasks.spawn(async move { handover.attend(connection, ending).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a program that hands over could not be let in");
                    sleep(PAUSE).await;
                }
            }
        }
        tasks.close();
        if tokio::time::timeout(JOIN_TIMEOUT, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("a program that handed over is left to the next manager");
        }
    }

    /// Nobody is heard who is not admitted.
    async fn attend(self: Arc<Self>, connection: Connection, ending: CancellationToken) {
        let uid = connection.peer_uid();
        let Some(uid) = uid.filter(|uid| self.admits(*uid)) else {
            self.turn_away(&connection, uid).await;
            return;
        };
        let place = Arc::clone(&self.beginning).try_acquire_owned().ok();
        // What it brings is not taken before there is a thread that can close it.
        let Some(beginning) = place.filter(|_| !foreign_descriptors::is_behind()) else {
            let reason = "too many programs hand over at this moment".to_owned();
            let _ = connection.send(&FromManager::NotYet { reason }, None).await;
            return;
        };
        let conversation = Conversation::new(self, connection, uid, beginning);
        Actor::of_uid(uid).orders(conversation.lead(ending)).await;
    }

    fn admits(&self, uid: u32) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        uid == 0 || uid == own || self.manager.config().swtpm.uids.contains(&uid)
    }

    async fn turn_away(&self, connection: &Connection, uid: Option<u32>) {
        let reason = format!(
            "this user ({}) may not hand over to the manager: name it in `[swtpm] users` of the \
             manager's configuration",
            uid.map_or_else(|| "unknown".to_owned(), |uid| uid.to_string())
        );
        self.record_refusal(uid, "handover", &reason).await;
        let _ = connection
            .send(&FromManager::Refused { reason }, None)
            .await;
    }

    /// Writes a refusal into the audit log, but not any number of them.
    async fn record_refusal(&self, uid: Option<u32>, request: &str, reason: &str) {
        tracing::warn!(?uid, request, reason, "refused at the socket for swtpm");
        let admitted = self
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
        let (true, Some(uid)) = (admitted, uid) else {
            return;
        };
        let event = Event::Refused {
            uid,
            request: request.into(),
            reason: reason.into(),
        };
        if let Err(error) = self.manager.guarded().record(event).await {
            tracing::error!(%error, "a refusal is not in the audit log");
        }
    }
}
