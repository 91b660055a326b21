//! A backend as the rest of the manager knows it: launched, found running, spoken to, ended.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use backend_link::message::{FromBackend, Open, PROTOCOL, Status, ToBackend};
use cert_chain::{Generation, VrotId};
use guarded_state::disk::StateBlob;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::BackendError;
use super::connection::Connection;
use super::folder::RuntimeFolder;
use super::nursery::Nursery;
use super::process::Process;
use super::supervisor::{
    Ended, GuestRole, InstanceId, Observed, Order, Role, STOP_DEADLINE, Supervisor,
};
use crate::manufacture::CommandChannel;

/// A handle to a live backend. When the last one goes, the backend is left running.
#[derive(Debug)]
pub struct Backend {
    orders: mpsc::Sender<Order>,
    observed: watch::Receiver<Observed>,
    folder: RuntimeFolder,
    instance: InstanceId,
    /// How many orders wait until the backend is used by nobody.
    waiting: watch::Sender<usize>,
}

/// An order that waits until a backend is used by nobody. Over when dropped.
#[derive(Debug)]
pub struct OrderWaits<'a>(&'a watch::Sender<usize>);

/// What a backend left that was ended without being taken over.
#[derive(Debug)]
pub struct Dismissed {
    /// Its last state.
    pub state: Option<StateBlob>,
    /// Whether it had answered a command whose state was not durable; `None` if it did not say.
    pub was_degraded: Option<bool>,
}

/// A way to send TPM commands to a live backend, between those of its guest. Blocks.
#[derive(Debug)]
pub struct ExecuteChannel {
    orders: mpsc::Sender<Order>,
    runtime: tokio::runtime::Handle,
    /// How many orders wait for whoever uses this.
    waiting: watch::Receiver<usize>,
    gave_way: bool,
}

/// A state with an RSA key in it is opened in milliseconds; making a new one takes seconds on a
/// busy machine.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// A backend that was occupied when its last manager ended may take the next for a second one.
const STATUS_PAUSE: Duration = Duration::from_millis(50);
/// What a store that works needs by far; one that does not is to be repaired first.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);
/// What a backend may say before its status: what its last manager did not acknowledge, and what
/// its guest changes meanwhile.
const MAX_EARLY: usize = 64;
/// The longest TPM command, on the busiest machine.
const EXECUTE_DEADLINE: Duration = Duration::from_secs(60);
/// The same while an order waits for whoever sent the command.
const GIVING_WAY: Duration = Duration::from_secs(5);

impl Backend {
    /// Starts a backend and opens a vRoT in it. Returns when a VMM can attach.
    pub async fn launch(
        nursery: &Nursery,
        folder: RuntimeFolder,
        open: Open,
        role: Role,
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
            if let Role::Guest(_) = role {
                nursery.let_vmms_in(&folder)?;
            }
            opened
        });
        match opened {
            Ok(Ok((connection, early))) => {
                let observed = Observed {
                    process: u32::try_from(child.number()).unwrap_or_default(),
                    ..Observed::default()
                };
                let line = (connection, child);
                Ok(Self::supervised(folder, line, early, role, observed))
            }
            other => {
                // What did not open is of no use, and must not linger.
                child.kill();
                child.ended().await;
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
        let observed = Observed::told(&status);
        let line = (connection, process);
        let backend = Self::supervised(folder, line, early, role, observed);
        Ok(Some(backend))
    }

    /// What a backend says of itself, if it is alive and nobody serves it; changes nothing.
    pub async fn look(
        folder: &RuntimeFolder,
        patience: Duration,
    ) -> Result<Option<Observed>, BackendError> {
        let found = timeout(patience, introduced(folder)).await;
        let found = found.unwrap_or_else(|_| Err(silent(folder, patience)))?;
        Ok(found.map(|found| Observed::told(&found.status)))
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

    fn supervised(
        folder: RuntimeFolder,
        line: (Connection, Process),
        early: VecDeque<FromBackend>,
        role: Role,
        at_first: Observed,
    ) -> Self {
        let instance = InstanceId::next();
        let supervised = folder.clone();
        let (orders, observed) =
            Supervisor::start(supervised, line, early, role, instance, at_first);
        Self {
            orders,
            observed,
            folder,
            instance,
            waiting: watch::Sender::new(0),
        }
    }

    /// Which of all backends it is.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Ends the backend. Returns when it is gone and all its state is durable.
    pub async fn stop(&self) -> Result<Ended, BackendError> {
        self.stop_within(STOP_DEADLINE).await
    }

    /// The same with one that is killed if it does not do so within this time.
    pub async fn stop_within(&self, patience: Duration) -> Result<Ended, BackendError> {
        self.ask(|done| Order::Stop(done, patience)).await
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

    /// Waits until everything that the backend has pushed is durable, for a while.
    pub async fn settle(&self) -> Result<(), BackendError> {
        let settled = timeout(SETTLE_DEADLINE, self.ask(Order::Settle)).await;
        settled.unwrap_or(Err(BackendError::NotDurable {
            vrot: self.folder.vrot(),
        }))
    }

    /// Waits for a backend that has ended by itself to be done with, for a while.
    pub async fn concluded(&self) -> Result<(), BackendError> {
        let mut observed = self.observed.clone();
        let concluded = async { while observed.changed().await.is_ok() {} };
        let concluded = timeout(SETTLE_DEADLINE, concluded).await;
        concluded.map_err(|_| BackendError::NotDurable {
            vrot: self.folder.vrot(),
        })
    }

    /// Kills a backend that does not do what it is told.
    pub async fn kill(&self) {
        // One that has ended needs none.
        let _ = self.orders.send(Order::Kill).await;
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
        role: Box<GuestRole>,
    ) -> Result<Option<StateBlob>, BackendError> {
        let unsaved = self.ask(|done| Order::Serve(role, done)).await?;
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
            waiting: self.waiting.subscribe(),
            gave_way: false,
        }
    }

    /// Has whoever sends commands to the backend give it up if it does not answer.
    pub fn order_waits(&self) -> OrderWaits<'_> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        OrderWaits(&self.waiting)
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

impl Drop for OrderWaits<'_> {
    fn drop(&mut self) {
        self.0
            .send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

impl CommandChannel for ExecuteChannel {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let gave_way = || {
            let what = "the backend does not answer, and an order waits for it";
            io::Error::new(io::ErrorKind::TimedOut, what)
        };
        if self.gave_way {
            return Err(gave_way());
        }
        let waiting = &mut self.waiting;
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
            let in_the_way = async {
                while waiting.wait_for(|waiting| *waiting > 0).await.is_ok() {
                    sleep(GIVING_WAY).await;
                    if *waiting.borrow() > 0 {
                        return;
                    }
                }
                // The backend's handle is gone, and with it whoever could wait.
                std::future::pending().await
            };
            tokio::select! {
                answer = timeout(EXECUTE_DEADLINE, answer) => if let Ok(answer) = answer {
                    return answer;
                },
                () = in_the_way => {
                    self.gave_way = true;
                    return Err(gave_way());
                }
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
    child: &mut Process,
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

/// A running backend that has told its status.
pub(super) struct Found {
    pub(super) connection: Connection,
    pub(super) process: Process,
    pub(super) status: Status,
    /// What it said before and then.
    pub(super) early: VecDeque<FromBackend>,
}

/// Dials a running backend; `None` if it is gone.
pub(super) async fn introduced(folder: &RuntimeFolder) -> Result<Option<Found>, BackendError> {
    loop {
        let Some((mut connection, process)) = Connection::to_running(folder).await? else {
            return Ok(None);
        };
        // A backend that ends a connection that it has not seen yet is no failure.
        if connection.send(&ToBackend::Hello).await.is_ok() {
            let mut early = VecDeque::new();
            while let Some(message) = connection.receive().await? {
                let status = match &message {
                    FromBackend::Status(status) => Some(status.clone()),
                    _ => None,
                };
                early.push_back(message);
                if let Some(status) = status {
                    return Ok(Some(Found {
                        connection,
                        process,
                        status,
                        early,
                    }));
                }
                if early.len() > MAX_EARLY {
                    let vrot = folder.vrot();
                    return Err(BackendError::Stranger { vrot });
                }
            }
        }
        sleep(STATUS_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroU32;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Instant;

    use anyhow::{Context, Result};
    use attestation::{Anchoring, CutOff, StateLoss};
    use backend_link::frame;
    use cert_chain::{AttestationKey, Digest32, PcrValues, TpmName, VmId};
    use guarded_state::disk::{Batch, Part};
    use guarded_state::testing::journal;

    use super::*;
    use crate::backend::GuestRole;
    use crate::backend::share::Share;
    use crate::evidence::{HostEvidence, HostQuoter, Quota, Subject};
    use trust_anchor::{AnchorError, SignedQuote};

    /// No test here asks for evidence.
    struct NoQuoter;

    impl HostQuoter for NoQuoter {
        async fn identity_key(&self) -> Result<AttestationKey, AnchorError> {
            Err(AnchorError::Stopped)
        }

        async fn quote(&self, _: Digest32) -> Result<SignedQuote, AnchorError> {
            Err(AnchorError::Stopped)
        }

        async fn quoted_pcrs(&self) -> Result<PcrValues, AnchorError> {
            Err(AnchorError::Stopped)
        }
    }

    fn name() -> Result<TpmName> {
        Ok(TpmName::from_bytes(&[&[0, 0x0b], &[6; 32][..]].concat())?)
    }

    /// Pushes states without end, and does nothing that it is told, for as long as the process
    /// lives.
    fn flood(mut manager: UnixStream, mut process: Child) -> Result<()> {
        for sequence in 1.. {
            let pushed = FromBackend::StateChanged {
                sequence,
                sealed: vec![7; 64].into(),
            };
            if process.try_wait()?.is_some() || manager.write_all(&frame::encode(&pushed)?).is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_backend_that_pushes_without_end_cannot_keep_its_vrot_from_being_stopped()
    -> Result<()> {
        let folders = tempfile::tempdir()?;
        let vrot = VrotId::random();
        let folder = RuntimeFolder::of(folders.path(), folders.path(), vrot);
        let journal = journal().await?;
        let created = Batch::default().put_record(vrot, Generation::new(1), b"a record".to_vec());
        journal.commit(created).await?;
        let (ended, _endings) = mpsc::unbounded_channel();
        let role = Role::Guest(Box::new(GuestRole {
            journal: journal.clone(),
            evidence: HostEvidence::start(NoQuoter, folders.path()),
            subject: Subject {
                vm: VmId::random(),
                vrot,
                tenant: "acme".parse()?,
                generation: Generation::new(1),
                vik: name()?,
                eks: vec![],
                anchoring: Anchoring::Strict,
                cut_off: CutOff::Excluded,
                state_loss: StateLoss::Excluded,
            },
            quota: Quota::per_minute(1, Instant::now()),
            share: Share::new(NonZeroU32::MIN, Duration::from_millis(200), Instant::now()),
            ended,
        }));
        let child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()?;
        let process = Process::found(child.id().try_into()?)?.context("it runs")?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let connection = Connection::new(vrot, tokio::net::UnixStream::from_std(ours)?);
        let backend = Backend::supervised(
            folder,
            (connection, process),
            VecDeque::new(),
            role,
            Observed::default(),
        );
        let flood = thread::spawn(move || flood(theirs, child));
        // Until its burst is over: from then on, one state always waits behind another.
        let durable = || async {
            let state = journal.read(vrot, Part::Permanent).await?;
            let state = state
                .map(|state| StateBlob::from_bytes(&state))
                .transpose()?;
            anyhow::Ok(state.map_or(0, |state| state.sequence))
        };
        while durable().await? < 5000 {
            tokio::task::yield_now().await;
        }
        // What it had pushed by now is durable, and that is all that its vRoT needs.
        backend.settle().await?;
        backend.kill().await;
        let flooded = tokio::task::spawn_blocking(move || flood.join());
        flooded.await?.map_err(|_| anyhow::anyhow!("the flood"))??;
        backend.concluded().await?;
        assert!(backend.has_ended());
        Ok(())
    }
}
