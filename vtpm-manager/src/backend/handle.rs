//! A backend as the rest of the manager knows it: launched, found running, spoken to, ended.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use cert_chain::Generation;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use vtpm_backend::message::{FromBackend, Open, Status, ToBackend};

use super::BackendError;
use super::connection::Connection;
use super::folder::RuntimeFolder;
use super::nursery::{Nursery, Offspring};
use super::supervisor::{
    Duty, Ended, GuestDuty, Observed, Order, STOP_DEADLINE, Supervisor, kill_process,
};
use crate::manufacture::CommandChannel;
use crate::store::StateBlob;

/// A handle to a live backend. When the last one goes, the backend is left running.
#[derive(Debug)]
pub struct Backend {
    orders: mpsc::Sender<Order>,
    observed: watch::Receiver<Observed>,
    folder: RuntimeFolder,
}

/// A way to send TPM commands to a live backend, between those of its guest. Blocks.
#[derive(Debug)]
pub struct ExecuteChannel {
    orders: mpsc::Sender<Order>,
    runtime: tokio::runtime::Handle,
}

/// A state with an RSA key in it is opened in milliseconds; making a new one takes seconds on a
/// busy machine.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// A backend that was occupied when its last manager ended may take the next for a second one.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// The longest TPM command, on the busiest machine.
const EXECUTE_DEADLINE: Duration = Duration::from_secs(60);

impl Backend {
    /// Starts a backend and opens a vRoT in it. Returns when a VMM can attach.
    pub async fn launch(
        nursery: &Nursery,
        folder: RuntimeFolder,
        open: Open,
        duty: Duty,
    ) -> Result<Self, BackendError> {
        folder.create()?;
        let mut child = match nursery.bear(&folder).await {
            Ok(child) => child,
            Err(error) => {
                folder.remove()?;
                return Err(error);
            }
        };
        let opened = timeout(OPEN_DEADLINE, opened(&folder, &mut child, open)).await;
        let opened = opened.map(|opened| {
            if let Duty::Guest(_) = duty {
                nursery.let_vmms_in(&folder)?;
            }
            opened
        });
        match opened {
            Ok(Ok((connection, early))) => Ok(Self::supervised(
                folder,
                connection,
                Some(child),
                early,
                duty,
            )),
            other => {
                // What did not open is of no use, and must not linger.
                child.kill();
                folder.remove()?;
                Err(match other {
                    Ok(Err(error)) => error,
                    _ => BackendError::Deadline {
                        vrot: folder.vrot(),
                        what: "open its state",
                        limit: OPEN_DEADLINE,
                    },
                })
            }
        }
    }

    /// Takes over a backend that an earlier manager started and that answers within `patience`;
    /// `None` if it is gone.
    pub async fn adopt(
        folder: RuntimeFolder,
        generation: Generation,
        duty: Duty,
        patience: Duration,
    ) -> Result<Option<Self>, BackendError> {
        let found = timeout(patience, introduced(&folder)).await;
        let found = found.unwrap_or(Err(BackendError::Deadline {
            vrot: folder.vrot(),
            what: "tell its status",
            limit: patience,
        }))?;
        let Some((connection, status, early)) = found else {
            return Ok(None);
        };
        let expected = (Some(*folder.vrot().as_bytes()), generation.number());
        if (status.vrot.map(<[u8; 16]>::from), status.generation) != expected {
            return Err(BackendError::Stranger {
                vrot: folder.vrot(),
            });
        }
        let backend = Self::supervised(folder, connection, None, early, duty);
        Ok(Some(backend))
    }

    /// Ends a backend of which nothing is known but its folder, as far as it is alive at all.
    pub async fn dismiss(folder: &RuntimeFolder) -> Result<(), BackendError> {
        if let Some(mut connection) = Connection::to_running(folder).await? {
            connection.send(&ToBackend::Stop).await?;
            let gone = async { while let Ok(Some(_)) = connection.receive().await {} };
            if timeout(STOP_DEADLINE, gone).await.is_err() {
                kill_process(&connection);
            }
        }
        folder.remove()
    }

    fn supervised(
        folder: RuntimeFolder,
        connection: Connection,
        child: Option<Offspring>,
        early: VecDeque<FromBackend>,
        duty: Duty,
    ) -> Self {
        let (orders, observed) = Supervisor::start(folder.clone(), connection, child, early, duty);
        Self {
            orders,
            observed,
            folder,
        }
    }

    /// Ends the backend. Returns when it is gone and all its state is durable.
    pub async fn stop(&self) -> Result<Ended, BackendError> {
        self.ask(Order::Stop).await
    }

    /// Has the guest wait and brings the volatile state, sealed; `None` if the TPM is off. The
    /// guest waits until the backend is stopped, or [told to go on](Self::go_on).
    pub async fn suspend(&self) -> Result<Option<Vec<u8>>, BackendError> {
        let volatile = timeout(STOP_DEADLINE, self.ask(Order::Suspend)).await;
        volatile.unwrap_or(Err(BackendError::Deadline {
            vrot: self.folder.vrot(),
            what: "hand over its volatile state",
            limit: STOP_DEADLINE,
        }))
    }

    /// Lets a guest that waits go on.
    pub async fn go_on(&self) {
        // A backend that has ended has no guest that waits.
        let _ = self.orders.send(Order::Hold(false)).await;
    }

    /// What was kept aside since it was last taken, of a backend without a guest.
    pub async fn take_state(&self) -> Result<Option<StateBlob>, BackendError> {
        self.ask(Order::TakeState).await
    }

    /// Gives a backend that waited for a VM its guest. State that was kept aside until now is
    /// the caller's to commit; from now on the backend's state goes to the store by itself.
    pub async fn serve(
        &self,
        nursery: &Nursery,
        duty: Box<GuestDuty>,
    ) -> Result<Option<StateBlob>, BackendError> {
        let unsaved = self.ask(|done| Order::Serve(duty, done)).await?;
        nursery.let_vmms_in(&self.folder)?;
        Ok(unsaved)
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, BackendError> {
        let (done, answer) = oneshot::channel();
        let by_itself = || BackendError::Ended {
            vrot: self.folder.vrot(),
            reason: "it ended by itself a moment ago".to_owned(),
        };
        let sent = self.orders.send(order(done)).await;
        sent.map_err(|_| by_itself())?;
        answer.await.map_err(|_| by_itself())
    }

    /// A way to send TPM commands to the backend. Must be called in a task, and used in a thread
    /// that may block.
    pub fn channel(&self) -> ExecuteChannel {
        ExecuteChannel {
            orders: self.orders.clone(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Leaves the backend running without a manager. Returns when what it pushed is durable.
    pub async fn release(&self) {
        // A supervisor that takes no more orders is at its end already.
        let _ = self.orders.send(Order::Release).await;
        let mut observed = self.observed.clone();
        while observed.changed().await.is_ok() {}
    }

    /// Whether it is known to have ended.
    pub fn has_ended(&self) -> bool {
        self.orders.is_closed()
    }

    /// How it stands with the backend.
    pub fn observed(&self) -> Observed {
        *self.observed.borrow()
    }

    /// Where it listens.
    pub fn folder(&self) -> &RuntimeFolder {
        &self.folder
    }
}

impl CommandChannel for ExecuteChannel {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the backend has ended");
        let (response, responded) = oneshot::channel();
        let order = Order::Execute {
            command: command.to_vec(),
            response,
        };
        self.runtime.block_on(async {
            let answer = async {
                self.orders.send(order).await.map_err(|_| gone())?;
                responded.await.map_err(|_| gone())
            };
            if let Ok(answer) = timeout(EXECUTE_DEADLINE, answer).await {
                return answer;
            }
            // Others wait for their turn, and whoever would end this backend waits as well.
            let _ = self.orders.send(Order::Kill).await;
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    fn hold(&mut self, held: bool) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the backend has ended");
        self.orders.blocking_send(Order::Hold(held)).map_err(gone)
    }
}

/// Hands key and state over and waits until they are opened.
async fn opened(
    folder: &RuntimeFolder,
    child: &mut Offspring,
    open: Open,
) -> Result<(Connection, VecDeque<FromBackend>), BackendError> {
    let mut connection = Connection::to_new(folder, child).await?;
    connection.send(&ToBackend::Open(open)).await?;
    let mut early = VecDeque::new();
    loop {
        match connection.receive().await? {
            Some(FromBackend::Opened) => return Ok((connection, early)),
            Some(FromBackend::Failed { reason }) => {
                return Err(BackendError::Ended {
                    vrot: folder.vrot(),
                    reason,
                });
            }
            Some(other) => early.push_back(other),
            None => {
                return Err(BackendError::Ended {
                    vrot: folder.vrot(),
                    reason: "it closed its connection".to_owned(),
                });
            }
        }
    }
}

/// A connection to a running backend that has told its status; `None` if it is gone.
async fn introduced(
    folder: &RuntimeFolder,
) -> Result<Option<(Connection, Status, VecDeque<FromBackend>)>, BackendError> {
    loop {
        let Some(mut connection) = Connection::to_running(folder).await? else {
            return Ok(None);
        };
        connection.send(&ToBackend::Hello).await?;
        let mut early = VecDeque::new();
        while let Some(message) = connection.receive().await? {
            if let FromBackend::Status(status) = &message {
                let status = status.clone();
                early.push_back(message);
                return Ok(Some((connection, status, early)));
            }
            early.push_back(message);
        }
        sleep(STATUS_PAUSE).await;
    }
}
