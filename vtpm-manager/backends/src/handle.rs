//! A backend as the rest of the manager knows it: launched, given orders, ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backend_link::message::{FromBackend, Open, ToBackend};
use backend_link::transport::Transport;
use guarded_state::disk::StateBlob;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tpm_wire::{Response, ResponseCode};

use super::BackendError;
use super::connection::Connection;
use super::folder::RuntimeFolder;
use super::order::{Ended, GuestRole, InstanceId, Observed, Order, Role, STOP_DEADLINE};
use super::process::Process;
use super::supervisor::Supervisor;
use super::zygote::Zygote;
use crate::background::Background;

/// A handle to a live backend. When the last one goes, a backend with a guest is left running, and
/// one without is ended.
#[derive(Debug)]
pub struct Backend {
    pub(super) orders: mpsc::Sender<Order>,
    observed: watch::Receiver<Observed>,
    folder: RuntimeFolder,
    instance: InstanceId,
    /// How many orders wait for exclusive use of the backend.
    pub(super) waiting: watch::Sender<usize>,
}

/// A state with an RSA key in it is opened in milliseconds; making a new one takes seconds on a
/// busy machine.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// What a store that works needs by far; one that does not is to be repaired first.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

impl Backend {
    /// Starts a backend and opens a vRoT in it. Returns when a VMM can attach.
    ///
    /// What serves it is one of these tasks.
    pub async fn launch(
        background: &Arc<Background>,
        zygote: &Zygote,
        folder: RuntimeFolder,
        open: Open,
        role: Role,
        transport: Transport,
    ) -> Result<Self, BackendError> {
        folder.create()?;
        let mut child = match zygote.spawn(&folder, transport).await {
            Ok(child) => child,
            Err(error) => {
                folder.remove()?;
                return Err(error);
            }
        };
        let opened = timeout(OPEN_DEADLINE, opened(&folder, &mut child, open)).await;
        let opened = opened.map(|opened| {
            if let Role::Guest(_) = role {
                zygote.let_vmms_in(&folder)?;
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
                Ok(Self::supervised(
                    background, folder, line, early, role, observed,
                ))
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

    pub(super) fn supervised(
        background: &Arc<Background>,
        folder: RuntimeFolder,
        line: (Connection, Process),
        early: VecDeque<FromBackend>,
        role: Role,
        at_first: Observed,
    ) -> Self {
        let instance = InstanceId::next();
        let supervised = folder.clone();
        let (orders, observed) = Supervisor::start(
            background, supervised, line, early, role, instance, at_first,
        );
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

    /// Resets the TPM of a VM that shares its memory with the backend; the TPM's response code.
    pub async fn reset(&self) -> Result<ResponseCode, BackendError> {
        let vrot = self.folder.vrot();
        let overdue = |_| BackendError::Deadline {
            vrot,
            what: "reset its TPM",
            limit: STOP_DEADLINE,
        };
        let response = timeout(STOP_DEADLINE, self.ask(Order::Reset)).await;
        let response = response.map_err(overdue)??;
        let response = Response::parse(&response).map(|response| response.code());
        Ok(response.unwrap_or(ResponseCode::FAILURE))
    }

    /// Waits until everything that the backend has pushed is durable, for a while.
    pub async fn settle(&self) -> Result<(), BackendError> {
        let settled = timeout(SETTLE_DEADLINE, self.ask(Order::Settle)).await;
        settled.unwrap_or(Err(BackendError::NotDurable {
            vrot: self.folder.vrot(),
        }))
    }

    /// Waits until the backend is done with, however it ended, or is released.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut observed = self.observed.clone();
        async move { while observed.changed().await.is_ok() {} }
    }

    /// Waits for a backend that has ended by itself to be done with, for a while.
    pub async fn concluded(&self) -> Result<(), BackendError> {
        let concluded = timeout(SETTLE_DEADLINE, self.over()).await;
        concluded.map_err(|_| BackendError::NotDurable {
            vrot: self.folder.vrot(),
        })
    }

    /// Waits until all that the guest was told is durable, or the backend has ended.
    pub async fn caught_up(&self) {
        // An error says that nobody observes it any more.
        let _ = (self
            .observed
            .clone()
            .wait_for(|observed| !observed.degraded))
        .await;
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
        zygote: &Zygote,
        role: Box<GuestRole>,
    ) -> Result<Option<StateBlob>, BackendError> {
        let unsaved = self.ask(|done| Order::Serve(role, done)).await?;
        zygote.let_vmms_in(&self.folder)?;
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

    /// Tells whenever that changes; ends with the backend.
    pub fn observations(&self) -> watch::Receiver<Observed> {
        self.observed.clone()
    }

    /// Where it listens.
    pub fn folder(&self) -> &RuntimeFolder {
        &self.folder
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::num::NonZeroU32;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Instant;

    use anyhow::{Context, Result};
    use attestation::{Anchoring, CutOff, LaunchMeasurement, StateLoss, TpmTransport};
    use backend_link::frame;
    use cert_chain::{AttestationKey, Digest32, Generation, PcrValues, TpmName, VmId, VrotId};
    use guarded_state::disk::{Batch, Part};
    use guarded_state::testing::journal;

    use super::*;
    use crate::GuestRole;
    use crate::share::Share;
    use host_evidence::{HostEvidence, HostQuoter, Subject};
    use rate_limit::Quota;
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
            evidence: HostEvidence::new(NoQuoter, folders.path()).0,
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
                launch: LaunchMeasurement::NotMeasured,
                transport: TpmTransport::Emulator,
            },
            quota: Quota::per_minute(1, Instant::now()),
            share: Share::new(NonZeroU32::MIN, Duration::from_millis(200), Instant::now()),
            ended,
            certified: watch::Sender::new(true).subscribe(),
        }));
        let child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()?;
        let process = Process::found(child.id().try_into()?)?.context("it runs")?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let connection = Connection::new(vrot, tokio::net::UnixStream::from_std(ours)?);
        let background = Arc::new(Background::default());
        let backend = Backend::supervised(
            &background,
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
