//! The handle to the thread that owns the physical TPM.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cert_chain::operator::{Approval, PolicyKeyPublic};
use cert_chain::{AttestationKey, CredentialBlob, Digest32, PcrValues};
use tokio::sync::oneshot;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::config::AnchorConfig;
use super::error::AnchorError;
use super::esys;
use super::hardware::{HostPublic, SignedQuote};
use super::owner::{Connect, Owner};
use super::policy::HostPolicy;
use super::queue::{Priority, Queue};
use super::root_secret::RootSecret;
use super::watchdog::{Waiting, Watchdog};

/// A handle to the physical TPM. Clones share one connection, which closes with the last one.
#[derive(Clone)]
pub struct TrustAnchor(Arc<Handle>);

impl TrustAnchor {
    /// Connects to the TPM and reads the record of what was provisioned. Blocks for some
    /// commands' time; a TPM that does not answer within it is an error.
    pub fn start(config: &AnchorConfig) -> Result<Self, AnchorError> {
        let tpm = config.tpm.clone();
        Self::over(config, Box::new(move || esys::connect(&tpm)))
    }

    /// The same over another implementation of a hardware root.
    pub fn over(config: &AnchorConfig, connect: Connect) -> Result<Self, AnchorError> {
        let queue = Arc::new(Queue::new());
        let watchdog = Arc::new(Watchdog::of(config.tpm.to_string()));
        let (started, start) = mpsc::sync_channel(1);
        let (alive, ended) = mpsc::channel::<()>();
        let config = config.clone();
        let (served, felt) = (Arc::clone(&queue), Arc::clone(&watchdog));
        let thread = thread::Builder::new()
            .name("trust-anchor".to_owned())
            .spawn(move || {
                let _alive = alive;
                // Also after a panic.
                let _closed = ClosedAtEnd(Arc::clone(&served));
                match Owner::new(config, connect, felt) {
                    Err(error) => drop(started.send(Err(error))),
                    Ok(mut owner) => {
                        drop(started.send(Ok(())));
                        serve(&served, &mut owner);
                    }
                }
            })
            .map_err(|_| AnchorError::Stopped)?;
        let anchor = Self(Arc::new(Handle {
            queue,
            watchdog,
            known: Mutex::new(None),
            thread: Some(thread),
            ended: Mutex::new(ended),
        }));
        wait(Waiting::for_a(&anchor.0.watchdog)?, &start)?;
        Ok(anchor)
    }

    /// Makes the host's keys, whatever of them is missing, for the operator with this key. Doing
    /// it again changes nothing; another operator's key is refused.
    pub async fn provision(&self, policy_key: &PolicyKeyPublic) -> Result<HostPublic, AnchorError> {
        let policy_key = policy_key.clone();
        self.ask(Priority::Bulk, move |owner| owner.provision(&policy_key))
            .await
    }

    /// The host's keys.
    pub async fn host_public(&self) -> Result<HostPublic, AnchorError> {
        let public = self.ask(Priority::Bulk, Owner::host_public).await?;
        *(self.0.known.lock()).unwrap_or_else(PoisonError::into_inner) = Some(public.clone());
        Ok(public)
    }

    /// The host's keys as the TPM showed them last, if it did. Waits for nothing.
    pub fn known_public(&self) -> Option<HostPublic> {
        (self.0.known.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How long the TPM has not answered, if that is longer than it may take. Waits for nothing.
    pub fn silence(&self) -> Option<Duration> {
        self.0.watchdog.silence()
    }

    /// An error while the TPM does not answer: nothing that needs it is to be begun.
    pub fn check_answers(&self) -> Result<(), AnchorError> {
        self.0.watchdog.time_left().map(drop)
    }

    /// Requests that wait for the TPM, without the one that it is at.
    pub fn waiting(&self) -> usize {
        self.0.queue.waiting()
    }

    /// Requests that were given up because the TPM did not answer.
    pub fn given_up(&self) -> u64 {
        self.0.watchdog.given_up()
    }

    /// Present values of the PCRs under policy: what an operator approves.
    pub async fn pcr_values(&self) -> Result<PcrValues, AnchorError> {
        self.ask(Priority::Bulk, Owner::pcr_values).await
    }

    /// Takes up an operator's approval, after checking its signature, and keeps it.
    pub async fn approve(&self, approval: Approval) -> Result<(), AnchorError> {
        self.ask(Priority::Bulk, move |owner| owner.approve(approval))
            .await
    }

    /// What the host's keys are bound to, and whether the host is in that state.
    pub async fn policy(&self) -> Result<HostPolicy, AnchorError> {
        self.ask(Priority::Bulk, Owner::policy).await
    }

    /// `TPM2_ActivateCredential` for the EK and the host IK: the secret in the credential.
    pub async fn activate_credential(
        &self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, AnchorError> {
        let credential = credential.clone();
        self.ask(Priority::Bulk, move |owner| {
            owner.activate_credential(&credential)
        })
        .await
    }

    /// A quote by the host IK over the configured PCRs, with this qualifying data.
    pub async fn quote(&self, qualifying_data: Digest32) -> Result<SignedQuote, AnchorError> {
        self.ask(Priority::Quote, move |owner| owner.quote(&qualifying_data))
            .await
    }

    /// The present values of the PCRs that are quoted. Nothing shows that the TPM said so: good to
    /// warn by.
    pub async fn quoted_pcrs(&self) -> Result<PcrValues, AnchorError> {
        self.ask(Priority::Bulk, Owner::quoted_pcr_values).await
    }

    /// Makes the root secret of a host that has none, which must run as approved.
    pub async fn make_root_secret(&self) -> Result<RootSecret, AnchorError> {
        self.ask(Priority::Bulk, Owner::make_root_secret).await
    }

    /// The root secret, unsealed, if this host's IK vouches for it.
    pub async fn root_secret(&self) -> Result<RootSecret, AnchorError> {
        self.ask(Priority::Bulk, Owner::root_secret).await
    }

    /// Has this host IK certify the storage root key, to which all secrets are encrypted on their
    /// way to the TPM. `ik` must be known from elsewhere: from the issuer's certificate.
    pub async fn certify_storage_root_key(&self, ik: &AttestationKey) -> Result<(), AnchorError> {
        let ik = ik.clone();
        self.ask(Priority::Bulk, move |owner| {
            owner.certify_storage_root_key(&ik)
        })
        .await
    }

    /// Signs with the host IK; waits without async.
    pub(super) fn sign_blocking(
        &self,
        priority: Priority,
        message: Vec<u8>,
    ) -> Result<Vec<u8>, AnchorError> {
        self.ask_blocking(priority, move |owner| owner.sign(&message))
    }

    /// Has the thread that owns the TPM do something, and waits for as long as the TPM answers.
    async fn ask<T: Send + 'static>(
        &self,
        priority: Priority,
        request: impl FnOnce(&mut Owner) -> Result<T, AnchorError> + Send + 'static,
    ) -> Result<T, AnchorError> {
        let (answer, mut answered) = oneshot::channel();
        let mut waiting = self.order(priority, request, move |done| drop(answer.send(done)))?;
        loop {
            if let Ok(answer) = timeout(waiting.time_left()?, &mut answered).await {
                return answer.map_err(|_| AnchorError::Stopped)?;
            }
        }
    }

    /// The same, for threads.
    pub(super) fn ask_blocking<T: Send + 'static>(
        &self,
        priority: Priority,
        request: impl FnOnce(&mut Owner) -> Result<T, AnchorError> + Send + 'static,
    ) -> Result<T, AnchorError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let waiting = self.order(priority, request, move |done| drop(answer.send(done)))?;
        wait(waiting, &answered)
    }

    fn order<T>(
        &self,
        priority: Priority,
        request: impl FnOnce(&mut Owner) -> Result<T, AnchorError> + Send + 'static,
        answer: impl FnOnce(Result<T, AnchorError>) + Send + 'static,
    ) -> Result<Waiting, AnchorError> {
        let waiting = Waiting::for_a(&self.0.watchdog)?;
        let claim = waiting.claim();
        self.0.queue.push(
            priority,
            Box::new(move |owner| {
                // A request that was given up is not sent to the TPM.
                if !claim.is_given_up() {
                    answer(owner.on_behalf_of(claim, request));
                }
            }),
        )?;
        Ok(waiting)
    }
}

/// Waits for as long as the TPM answers.
fn wait<T>(
    mut waiting: Waiting,
    answered: &mpsc::Receiver<Result<T, AnchorError>>,
) -> Result<T, AnchorError> {
    loop {
        match answered.recv_timeout(waiting.time_left()?) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Disconnected) => return Err(AnchorError::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl fmt::Debug for TrustAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustAnchor").finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce(&mut Owner) + Send>;

struct Handle {
    queue: Arc<Queue<Job>>,
    watchdog: Arc<Watchdog>,
    /// The host's keys, as the TPM showed them last.
    known: Mutex<Option<HostPublic>>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

/// Closes the queue when the thread that serves it ends.
struct ClosedAtEnd(Arc<Queue<Job>>);

impl Drop for ClosedAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Serves requests until the queue is closed; where none waits, what the next quote needs is done ahead.
fn serve(queue: &Queue<Job>, owner: &mut Owner) {
    while let Some(job) = queue.next() {
        job(owner);
        if queue.waiting() == 0 {
            owner.prepare();
        }
    }
}

impl Drop for Handle {
    /// Waits for the command that the TPM is working on, so that the connection closes in order; not
    /// for a TPM that does not answer.
    fn drop(&mut self) {
        self.queue.close();
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread.thread().id() == thread::current().id() {
            return;
        }
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        while let Ok(patience) = self.watchdog.time_left() {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected) {
                if thread.join().is_err() {
                    tracing::error!("the thread that owns the TPM has panicked");
                }
                return;
            }
        }
        tracing::warn!("the TPM does not answer: the connection to it is not closed in order");
    }
}
