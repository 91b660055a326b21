//! The task that serves one backend: makes its state durable, gets it host evidence, and notices
//! its end.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use attestation::{Durability, RequestDigest};
use cert_chain::{Digest32, VrotId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vtpm_backend::message::{FromBackend, ToBackend};

use super::BackendError;
use super::connection::Connection;
use super::folder::RuntimeFolder;
use super::nursery::Offspring;
use crate::evidence::{HostEvidence, Quota, Subject};
use crate::store::{Batch, Journal, Part, StateBlob, StoreError};

/// What is done for a backend.
pub enum Duty {
    /// It is being manufactured, or waits for a VM: state is kept aside, to be committed with the
    /// record.
    Manufacture,
    /// It serves a guest.
    Guest(Box<GuestDuty>),
}

/// What a backend with a guest needs.
#[derive(Debug)]
pub struct GuestDuty {
    /// Where state goes.
    pub journal: Journal,
    /// Where host evidence comes from.
    pub evidence: HostEvidence,
    /// What the host states about the vRoT.
    pub subject: Subject,
    /// How often it may ask.
    pub quota: Quota,
    /// Who is told when the backend ends by itself.
    pub ended: mpsc::UnboundedSender<(VrotId, Ended)>,
}

/// How it stands with a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its process.
    pub process: u32,
    /// Whether a VMM is attached.
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    pub degraded: bool,
}

/// How a backend ended.
#[derive(Debug)]
pub struct Ended {
    /// On demand, or not.
    pub ending: Ending,
    /// Its last state, if it was being manufactured and said anything.
    pub state: Option<StateBlob>,
}

/// How a backend ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// On demand.
    Ordered,
    /// By itself.
    Unordered {
        /// What is known of it.
        reason: String,
    },
}

/// A backend that was told to end finishes the command under way. Then it is killed.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Between attempts to write to a store that does not take it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Requests for evidence of one vRoT that are served at a time; its backend keeps no more either.
const OPEN_REQUESTS: usize = 4;

/// What a backend's supervisor is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    Execute {
        command: Vec<u8>,
        response: oneshot::Sender<Vec<u8>>,
    },
    /// Whether the guest is to wait.
    Hold(bool),
    Release,
    /// From now on there is a guest. The answer is what was kept aside until then.
    Serve(Box<GuestDuty>, oneshot::Sender<Option<StateBlob>>),
    Stop(oneshot::Sender<Ended>),
    /// Ends a backend that does not do what it is told.
    Kill,
    /// Has the guest wait and the volatile state, sealed, handed over, if there is one.
    Suspend(oneshot::Sender<Option<Vec<u8>>>),
    /// Hands over what was kept aside.
    TakeState(oneshot::Sender<Option<StateBlob>>),
}

/// What serves one backend.
pub(super) struct Supervisor {
    folder: RuntimeFolder,
    connection: Connection,
    child: Option<Offspring>,
    /// Messages that came before anybody was interested in them.
    early: VecDeque<FromBackend>,
    duty: Duty,
    orders: mpsc::Receiver<Order>,
    observer: watch::Sender<Observed>,
    /// The commit under way. There is one at a time: a state that is being retried must never
    /// overwrite a newer one.
    saving: Option<Saving>,
    /// The newest state that waits for its turn.
    unsaved: Option<StateBlob>,
    /// The newest state of a vRoT being manufactured.
    state: Option<StateBlob>,
    answers: JoinSet<(u64, Option<Vec<u8>>)>,
    /// Who waits for the response to a command, by its number.
    executing: BTreeMap<u64, oneshot::Sender<Vec<u8>>>,
    executed: u64,
    stop: Option<(oneshot::Sender<Ended>, Instant)>,
    /// Who waits for the volatile state.
    suspending: Option<oneshot::Sender<Option<Vec<u8>>>>,
}

struct Saving {
    blob: StateBlob,
    attempt: Attempt,
}

type Attempt = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

enum Event {
    Message(FromBackend),
    ConnectionEnded { reason: Option<String> },
    Ordered(Order),
    Saved(Result<(), StoreError>),
    Answer { ticket: u64, layer: Option<Vec<u8>> },
    StopOverdue,
}

impl Supervisor {
    /// Serves a backend in a task of its own; the way to order it about, and what it sees.
    pub(super) fn start(
        folder: RuntimeFolder,
        connection: Connection,
        child: Option<Offspring>,
        early: VecDeque<FromBackend>,
        duty: Duty,
    ) -> (mpsc::Sender<Order>, watch::Receiver<Observed>) {
        let (orders, received) = mpsc::channel(1);
        let process = connection.process().and_then(|id| u32::try_from(id).ok());
        let (observer, observed) = watch::channel(Observed {
            process: process.unwrap_or_default(),
            ..Observed::default()
        });
        let supervisor = Supervisor {
            folder,
            connection,
            child,
            early,
            duty,
            orders: received,
            observer,
            saving: None,
            unsaved: None,
            state: None,
            answers: JoinSet::new(),
            executing: BTreeMap::new(),
            executed: 0,
            stop: None,
            suspending: None,
        };
        tokio::spawn(supervisor.run());
        (orders, observed)
    }

    async fn run(mut self) {
        // Tells whether a VMM is attached: messages tell only what changes.
        let mut result = self.connection.send(&ToBackend::Hello).await;
        let reason = loop {
            if let Err(error) = result {
                break Some(error.to_string());
            }
            result = match self.next().await {
                Event::Message(message) => self.follow(message).await,
                Event::ConnectionEnded { reason } => break reason,
                Event::Ordered(Order::Execute { command, response }) => {
                    self.executed += 1;
                    self.executing.insert(self.executed, response);
                    let execute = ToBackend::Execute {
                        id: self.executed,
                        command: command.into(),
                    };
                    self.connection.send(&execute).await
                }
                Event::Ordered(Order::Hold(held)) => {
                    self.connection.send(&ToBackend::Hold { held }).await
                }
                Event::Ordered(Order::Stop(done)) => {
                    self.stop = Some((done, Instant::now() + STOP_DEADLINE));
                    self.connection.send(&ToBackend::Stop).await
                }
                Event::Ordered(Order::Kill) => {
                    self.kill();
                    Ok(())
                }
                Event::Ordered(Order::Suspend(done)) => {
                    self.suspending = Some(done);
                    self.connection.send(&ToBackend::Suspend).await
                }
                Event::Ordered(Order::Serve(duty, done)) => {
                    self.duty = Duty::Guest(duty);
                    let _ = done.send(self.state.take());
                    Ok(())
                }
                Event::Ordered(Order::TakeState(done)) => {
                    let _ = done.send(self.state.take());
                    Ok(())
                }
                Event::Ordered(Order::Release) => return self.leave_running().await,
                Event::Saved(result) => self.saved(result).await,
                Event::Answer { ticket, layer } => {
                    let layer = layer.map(Into::into);
                    let answer = ToBackend::HostEvidence { ticket, layer };
                    self.connection.send(&answer).await
                }
                Event::StopOverdue => {
                    tracing::error!(vrot = %self.folder.vrot(), "the backend did not end: it is killed");
                    self.kill();
                    self.stop = self.stop.take().map(|(done, _)| (done, far_future()));
                    Ok(())
                }
            };
        };
        self.conclude(reason).await;
    }

    /// Waits for whatever comes first. Nothing is lost when the wait is given up.
    async fn next(&mut self) -> Event {
        if let Some(message) = self.early.pop_front() {
            return Event::Message(message);
        }
        let overdue = self.stop.as_ref().map(|(_, deadline)| *deadline);
        let has_answers = !self.answers.is_empty();
        tokio::select! {
            message = self.connection.receive() => match message {
                Ok(Some(message)) => Event::Message(message),
                Ok(None) => Event::ConnectionEnded { reason: None },
                Err(error) => Event::ConnectionEnded { reason: Some(error.to_string()) },
            },
            order = self.orders.recv(), if self.stop.is_none() => match order {
                Some(order) => Event::Ordered(order),
                None => Event::Ordered(Order::Release),
            },
            saved = attempt(&mut self.saving) => Event::Saved(saved),
            Some(answer) = self.answers.join_next(), if has_answers => match answer {
                Ok((ticket, layer)) => Event::Answer { ticket, layer },
                // A panic of ours; the guest's ticket stays open until it is dropped.
                Err(error) => {
                    tracing::error!(%error, "a request for host evidence failed");
                    Event::Answer { ticket: u64::MAX, layer: None }
                }
            },
            () = sleep_until(overdue.unwrap_or_else(far_future)), if overdue.is_some() => {
                Event::StopOverdue
            }
        }
    }

    async fn follow(&mut self, message: FromBackend) -> Result<(), BackendError> {
        match message {
            FromBackend::StateChanged { sequence, sealed } => {
                let blob = StateBlob::new(sequence, sealed.into());
                match &self.duty {
                    Duty::Manufacture => {
                        self.state = Some(blob);
                        let persisted = ToBackend::Persisted { sequence };
                        return self.connection.send(&persisted).await;
                    }
                    Duty::Guest(duty) if self.saving.is_none() => {
                        let attempt = save(duty, &self.folder, &blob, Duration::ZERO);
                        self.saving = Some(Saving { blob, attempt });
                    }
                    Duty::Guest(_) => self.unsaved = Some(blob),
                }
            }
            FromBackend::HostEvidenceRequested { ticket, digest } => {
                let request = RequestDigest(Digest32::new(digest.into()));
                return self.request_evidence(ticket, request).await;
            }
            FromBackend::Attachment { attached } => {
                self.observer
                    .send_modify(|observed| observed.attached = attached);
            }
            FromBackend::Status(status) => self.observer.send_modify(|observed| {
                observed.process = status.pid;
                observed.attached = status.attached;
                observed.degraded = status.degraded;
            }),
            FromBackend::Failed { reason } => {
                tracing::error!(vrot = %self.folder.vrot(), reason, "the backend failed");
            }
            FromBackend::Executed { id, response } => {
                if let Some(waiting) = self.executing.remove(&id) {
                    // Who went away meanwhile does not need it.
                    let _ = waiting.send(response.into());
                }
            }
            FromBackend::Suspended { volatile } => {
                let waiting = self.suspending.take();
                let taken = waiting.map(|waiting| waiting.send(volatile.map(Into::into)));
                if !matches!(taken, Some(Ok(()))) {
                    // Nobody suspends it any more.
                    let go_on = ToBackend::Hold { held: false };
                    return self.connection.send(&go_on).await;
                }
            }
            FromBackend::Opened | FromBackend::Stopped => {}
        }
        Ok(())
    }

    /// One commit is done: tells the backend, or tries again.
    async fn saved(&mut self, result: Result<(), StoreError>) -> Result<(), BackendError> {
        let (Some(saving), Duty::Guest(duty)) = (self.saving.take(), &self.duty) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        let next = match result {
            Ok(()) => {
                let sequence = saving.blob.sequence;
                outcome = self
                    .connection
                    .send(&ToBackend::Persisted { sequence })
                    .await;
                self.unsaved.take().map(|blob| (blob, Duration::ZERO))
            }
            Err(StoreError::Closed) => {
                tracing::error!(vrot = %self.folder.vrot(), "state is not durable: the store is closed");
                None
            }
            Err(error) => {
                tracing::error!(vrot = %self.folder.vrot(), %error, "state is not durable yet");
                self.observer
                    .send_modify(|observed| observed.degraded = true);
                let blob = self.unsaved.take().unwrap_or(saving.blob);
                Some((blob, RETRY_PAUSE))
            }
        };
        self.saving = next.map(|(blob, pause)| Saving {
            attempt: save(duty, &self.folder, &blob, pause),
            blob,
        });
        outcome
    }

    async fn request_evidence(
        &mut self,
        ticket: u64,
        request: RequestDigest,
    ) -> Result<(), BackendError> {
        let admitted = match &mut self.duty {
            Duty::Guest(duty) if self.answers.len() < OPEN_REQUESTS => duty
                .quota
                .admit(std::time::Instant::now())
                .then(|| (duty.evidence.clone(), duty.subject.clone())),
            _ => None,
        };
        let Some((evidence, subject)) = admitted else {
            tracing::warn!(vrot = %self.folder.vrot(), "a request for host evidence exceeds the quota");
            let refusal = ToBackend::HostEvidence {
                ticket,
                layer: None,
            };
            return self.connection.send(&refusal).await;
        };
        let durability = if self.observer.borrow().degraded {
            Durability::Degraded
        } else {
            Durability::Durable
        };
        self.answers.spawn(async move {
            let layer = evidence.layer(&subject, durability, request).await;
            let layer = layer.map(|layer| layer.to_cbor()).map_err(|error| {
                tracing::warn!(vrot = %subject.vrot, %error, "no host evidence");
            });
            (ticket, layer.ok())
        });
        Ok(())
    }

    fn kill(&mut self) {
        match &self.child {
            Some(child) => child.kill(),
            None => kill_process(&self.connection),
        }
    }

    /// The manager ends. What the backend has pushed is made durable still.
    async fn leave_running(mut self) {
        while self.saving.is_some() {
            let result = attempt(&mut self.saving).await;
            if result.is_err() || self.saved(result).await.is_err() {
                return;
            }
        }
    }

    /// The connection is over: the backend has ended, or is made to.
    async fn conclude(mut self, reason: Option<String>) {
        let vrot = self.folder.vrot();
        if reason.is_some() {
            self.kill();
        }
        let status = match &mut self.child {
            Some(child) => match timeout(STOP_DEADLINE, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    child.kill();
                    child.wait().await
                }
            },
            None => "it closed its connection".to_owned(),
        };
        // A state that was pushed is kept, even if nobody waits for it any more.
        while self.saving.is_some() {
            let result = attempt(&mut self.saving).await;
            let _ = self.saved(result).await;
        }
        if let Err(error) = self.folder.remove() {
            tracing::warn!(%vrot, %error, "a folder is left behind");
        }
        let ending = match &self.stop {
            Some(_) => Ending::Ordered,
            None => Ending::Unordered {
                reason: reason.unwrap_or(status),
            },
        };
        let ended = Ended {
            ending,
            state: self.state.take(),
        };
        match (self.stop, self.duty) {
            (Some((done, _)), _) => {
                let _ = done.send(ended);
            }
            (None, Duty::Guest(duty)) => {
                // Without a manager nobody needs to know.
                let _ = duty.ended.send((vrot, ended));
            }
            (None, Duty::Manufacture) => {}
        }
    }
}

fn save(duty: &GuestDuty, folder: &RuntimeFolder, blob: &StateBlob, pause: Duration) -> Attempt {
    let journal = duty.journal.clone();
    let change = Batch::default().put(folder.vrot(), Part::Permanent, blob.to_bytes());
    Box::pin(async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        journal.commit(change).await
    })
}

/// The end of the commit under way; never, if there is none.
async fn attempt(saving: &mut Option<Saving>) -> Result<(), StoreError> {
    match saving {
        Some(saving) => saving.attempt.as_mut().await,
        None => pending().await,
    }
}

/// For a backend that is not our child. While its connection is open, its number is its own.
pub(super) fn kill_process(connection: &Connection) {
    if let Some(process) = connection.process()
        && let Err(error) = kill(Pid::from_raw(process), Signal::SIGKILL)
    {
        tracing::debug!(process, %error, "the backend was gone already");
    }
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 60 * 60)
}
