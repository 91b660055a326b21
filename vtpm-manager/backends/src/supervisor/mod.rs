//! The task that serves one backend: makes its state durable, gets it host evidence, and notices
//! its end.

mod ending;
mod quotes;
mod saving;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use attestation::evidence::SharedHostLayer;
use attestation::{Durability, LaunchMeasurement, RequestDigest};
use backend_link::message::{FromBackend, ToBackend};
use cert_chain::Digest32;
use guarded_state::disk::{MAX_CONTENTS, StateBlob, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::BackendError;
use super::connection::Connection;
use super::folder::RuntimeFolder;
use super::log_lines;
use super::order::{Ended, InstanceId, Observed, Order, Role};
use super::process::Process;
use crate::background::Background;
use host_evidence::{OpenLayers, Subject};
use rate_limit::Repetition;

use ending::After;
use quotes::Quotes;
use saving::{Saving, attempt, pause, save};

/// Between attempts to write to a store that does not take it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a request for evidence waits for the certificate of the vRoT's identity key. A guest
/// waits for 30 s.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(20);
/// Requests for evidence of one vRoT that are served at a time; its backend keeps no more either.
const OPEN_REQUESTS: usize = 4;

/// What serves one backend.
pub(super) struct Supervisor {
    /// Of all backends; when it ends, what does not become durable is given up.
    background: Arc<Background>,
    folder: RuntimeFolder,
    connection: Connection,
    process: Process,
    instance: InstanceId,
    /// Messages that came while the backend was opened.
    early: VecDeque<FromBackend>,
    role: Role,
    orders: mpsc::Receiver<Order>,
    observer: watch::Sender<Observed>,
    /// The commit under way. There is one at a time: a state that is being retried must never
    /// overwrite a newer one.
    saving: Option<Saving>,
    /// The newest state that waits for its turn.
    unsaved: Option<(u64, StateBlob)>,
    /// States that the backend pushed so far: by this number they are told apart, whatever numbers
    /// it gave them.
    pushed: u64,
    /// The newest state of a vRoT being manufactured.
    state: Option<StateBlob>,
    /// Whether the backend ended in order, after it had pushed its last state.
    handed_over: bool,
    answers: JoinSet<(u64, Option<SharedHostLayer>)>,
    /// The host layers that the guest may be reading.
    layers: OpenLayers,
    /// Receivers of responses to commands, by the command's number.
    executing: BTreeMap<u64, oneshot::Sender<Vec<u8>>>,
    executed: u64,
    quotes: Quotes,
    stop: Option<(oneshot::Sender<Ended>, Instant)>,
    /// Receiver of the volatile state.
    suspending: Option<oneshot::Sender<Option<Vec<u8>>>>,
    /// Requests for evidence that were refused.
    refusals: Repetition,
    /// Waits until this state, or one after it, is durable. What is pushed after that does not
    /// matter: a backend that never rests cannot keep its vRoT from being stopped.
    settling: Option<(u64, oneshot::Sender<()>)>,
}

/// Why a backend is not served any more.
enum Served {
    Released,
    ConnectionEnded { reason: Option<String> },
}

enum Event {
    Message(FromBackend),
    ConnectionEnded {
        reason: Option<String>,
    },
    Ordered(Order),
    Saved(Result<(), StoreError>),
    Answer {
        ticket: u64,
        layer: Option<SharedHostLayer>,
    },
    StopOverdue,
}

impl Supervisor {
    /// Serves a backend in a task of its own; the way to order it about, and what it sees.
    pub(super) fn start(
        background: &Arc<Background>,
        folder: RuntimeFolder,
        (connection, process): (Connection, Process),
        early: VecDeque<FromBackend>,
        role: Role,
        instance: InstanceId,
        at_first: Observed,
    ) -> (mpsc::Sender<Order>, watch::Receiver<Observed>) {
        let (orders, received) = mpsc::channel(1);
        let (observer, observed) = watch::channel(at_first);
        let supervisor = Supervisor {
            background: Arc::clone(background),
            folder,
            connection,
            process,
            instance,
            early,
            role,
            orders: received,
            observer,
            saving: None,
            unsaved: None,
            pushed: 0,
            state: None,
            handed_over: false,
            answers: JoinSet::new(),
            layers: OpenLayers::default(),
            executing: BTreeMap::new(),
            executed: 0,
            quotes: Quotes::default(),
            stop: None,
            suspending: None,
            refusals: Repetition::default(),
            settling: None,
        };
        background.spawn(supervisor.run());
        (orders, observed)
    }

    async fn run(mut self) {
        let (reason, status) = loop {
            let reason = match self.serve().await {
                Served::Released => return self.leave().await,
                Served::ConnectionEnded { reason } => reason,
            };
            match self.regain().await {
                After::Regained => {}
                After::Released => return self.leave().await,
                After::Ended { status } => break (reason, status),
            }
        };
        self.conclude(reason, status).await;
    }

    async fn serve(&mut self) -> Served {
        // Tells whether a VMM is attached: messages tell only what changes.
        let mut result = self.connection.send(&ToBackend::Hello).await;
        loop {
            if let Err(error) = result {
                let reason = Some(error.to_string());
                return Served::ConnectionEnded { reason };
            }
            result = match self.next().await {
                Event::Message(message) => self.follow(message).await,
                Event::ConnectionEnded { reason } => return Served::ConnectionEnded { reason },
                Event::Ordered(Order::Execute { command, response }) => {
                    self.executed += 1;
                    self.executing.insert(self.executed, response);
                    let execute = ToBackend::Execute {
                        id: self.executed,
                        command: command.into(),
                    };
                    self.connection.send(&execute).await
                }
                Event::Ordered(Order::Reset(response)) => {
                    self.executed += 1;
                    self.executing.insert(self.executed, response);
                    let id = self.executed;
                    self.connection.send(&ToBackend::Reset { id }).await
                }
                Event::Ordered(Order::Quote(nonce, answer)) => self.quote(nonce, answer).await,
                Event::Ordered(Order::Hold(held)) => {
                    self.connection.send(&ToBackend::Hold { held }).await
                }
                Event::Ordered(Order::Stop(done, patience)) => {
                    self.stop = Some((done, Instant::now() + patience));
                    self.connection.send(&ToBackend::Stop).await
                }
                Event::Ordered(Order::Kill) => {
                    self.process.kill();
                    Ok(())
                }
                Event::Ordered(Order::Settle(done)) => {
                    self.settle(done);
                    Ok(())
                }
                Event::Ordered(Order::Suspend(done)) => {
                    self.suspending = Some(done);
                    self.connection.send(&ToBackend::Suspend).await
                }
                Event::Ordered(Order::Serve(role, done)) => {
                    self.role = Role::Guest(role);
                    let _ = done.send(self.state.take());
                    Ok(())
                }
                Event::Ordered(Order::TakeState(done)) => {
                    let _ = done.send(self.state.take());
                    Ok(())
                }
                Event::Ordered(Order::Release) => return Served::Released,
                Event::Saved(result) => self.saved(result).await,
                Event::Answer { ticket, layer } => {
                    let part = layer.and_then(|layer| self.layers.open(ticket, layer));
                    let answer = ToBackend::HostEvidence { ticket, part };
                    self.connection.send(&answer).await
                }
                Event::StopOverdue => {
                    tracing::error!(vrot = %self.folder.vrot(), "the backend did not end: it is killed");
                    self.process.kill();
                    self.stop = self.stop.take().map(|(done, _)| (done, far_future()));
                    Ok(())
                }
            };
        }
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
            saved = attempt(&mut self.saving, &self.background) => Event::Saved(saved),
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
            FromBackend::StateChanged { sealed, .. } if sealed.len() > MAX_CONTENTS => {
                // Not a state of our engine: a backend that was taken over could fill the host's disk.
                let (vrot, bytes) = (self.folder.vrot(), sealed.len());
                tracing::error!(%vrot, bytes, "a state larger than any TPM's: the backend is killed");
                self.process.kill();
            }
            FromBackend::StateChanged { sequence, sealed } => {
                let blob = StateBlob::new(sequence, sealed.into());
                self.pushed += 1;
                let number = self.pushed;
                match &mut self.role {
                    Role::Manufacture => {
                        self.state = Some(blob);
                        let persisted = ToBackend::Persisted { sequence };
                        return self.connection.send(&persisted).await;
                    }
                    Role::Guest(role) if self.saving.is_none() => {
                        let pause = pause(role);
                        let attempt = save(role, &self.folder, &blob, pause);
                        self.saving = Some(Saving {
                            number,
                            blob,
                            attempt,
                        });
                    }
                    Role::Guest(_) => self.unsaved = Some((number, blob)),
                }
            }
            FromBackend::HostEvidenceRequested { ticket, digest } => {
                let request = RequestDigest(Digest32::new(digest.into()));
                return self.request_evidence(ticket, request).await;
            }
            FromBackend::HostEvidenceWanted { ticket, offset } => {
                let part = self.layers.part(ticket, offset);
                let answer = ToBackend::HostEvidence { ticket, part };
                return self.connection.send(&answer).await;
            }
            FromBackend::Attachment { attached, vmms } => {
                self.observer.send_modify(|observed| {
                    observed.attached = attached;
                    observed.vmms = vmms.unwrap_or(u64::MAX).max(observed.vmms);
                });
            }
            FromBackend::Status(status) => {
                let before = self.observer.send_replace(Observed::of_status(&status));
                if status.degraded && !before.degraded {
                    self.keep_note();
                }
            }
            FromBackend::Failed { reason } => {
                tracing::error!(vrot = %self.folder.vrot(), reason, "the backend failed");
            }
            FromBackend::Executed { id, response } => {
                if let Some(waiting) = self.executing.remove(&id) {
                    // The receiver may be gone.
                    let _ = waiting.send(response.into());
                }
            }
            FromBackend::Quoted { id, outcome } => return self.quoted(id, outcome).await,
            FromBackend::Suspended { volatile } => {
                let waiting = self.suspending.take();
                let taken = waiting.map(|waiting| waiting.send(volatile.map(Into::into)));
                if !matches!(taken, Some(Ok(()))) {
                    // The order was given up.
                    let go_on = ToBackend::Hold { held: false };
                    return self.connection.send(&go_on).await;
                }
            }
            FromBackend::Log { level, says } => log_lines::log(self.folder.vrot(), level, &says),
            FromBackend::Opened => {}
            FromBackend::Stopped => self.handed_over = true,
        }
        Ok(())
    }

    /// A backend notes for the next manager that it is degraded: should the host lose its power,
    /// that is known as well. It waits for nothing, as the disk may be what is in the way.
    fn keep_note(&self) {
        let folder = self.folder.clone();
        self.background.spawn_blocking(move || {
            if let Err(error) = folder.sync_note() {
                tracing::warn!(vrot = %folder.vrot(), %error, "that it is degraded is not on the disk");
            }
        });
    }

    async fn request_evidence(
        &mut self,
        ticket: u64,
        request: RequestDigest,
    ) -> Result<(), BackendError> {
        let admitted = match &mut self.role {
            Role::Guest(role) if self.answers.len() < OPEN_REQUESTS => {
                (role.quota.admit(std::time::Instant::now()))
                    .then(|| (role.evidence.clone(), role.certified.clone()))
            }
            _ => None,
        };
        let stated = self.statement();
        let Some(((evidence, mut certified), (subject, durability))) = admitted.zip(stated) else {
            if let Role::Guest(role) = &self.role {
                role.evidence.metrics().count_refusal();
            }
            if let Some(requests) = self.refusals.count(std::time::Instant::now()) {
                let vrot = self.folder.vrot();
                tracing::warn!(%vrot, requests, "more requests for host evidence than the quota admits");
            }
            let refusal = ToBackend::HostEvidence { ticket, part: None };
            return self.connection.send(&refusal).await;
        };
        self.answers.spawn(async move {
            let certified = async { certified.wait_for(|done| *done).await.is_ok() };
            if timeout(CERTIFICATE_DEADLINE, certified).await != Ok(true) {
                let limit = CERTIFICATE_DEADLINE.as_secs();
                tracing::warn!(
                    vrot = %subject.vrot,
                    "no host evidence: the certificate of the identity key is still pending after \
                     {limit} s"
                );
                evidence.metrics().count_pending();
                return (ticket, None);
            }
            let layer = evidence.layer(&subject, durability, request).await;
            let layer = layer.map_err(|error| {
                tracing::warn!(vrot = %subject.vrot, %error, "no host evidence");
            });
            (ticket, layer.ok())
        });
        Ok(())
    }
}

impl Supervisor {
    /// What the host states of the vRoT at present, if it has a guest.
    fn statement(&self) -> Option<(Subject, Durability)> {
        let Role::Guest(role) = &self.role else {
            return None;
        };
        let observed = *self.observer.borrow();
        let mut subject = role.subject.clone();
        if observed.has_changed_vmm() {
            subject.launch = LaunchMeasurement::NotMeasured;
        }
        let durability = match observed.degraded {
            true => Durability::Degraded,
            false => Durability::Durable,
        };
        Some((subject, durability))
    }
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 60 * 60)
}
