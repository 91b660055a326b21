//! Host evidence: one quote of the physical TPM for every request that arrived while the one
//! before was being made.
//!
//! Each request becomes a salted leaf ([`HostLeaf`]) of a Merkle tree (RFC 9162); the quote signs
//! the tree's root. A requester gets the quote, its own leaf and the path to the root, and learns
//! nothing of its neighbours. So the rate of evidence does not depend on how slowly the TPM signs, and
//! a vRoT that floods its host takes nothing from others: each has its turn.

mod host_log;
mod open_layers;
#[cfg(test)]
mod tests;
mod turns;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api_types::WithCauses;
use attestation::evidence::SharedHostLayer;
use attestation::merkle::Tree;
use attestation::quote::canonical_signature;
use attestation::{
    Anchoring, CutOff, Durability, HostLayer, HostLeaf, LaunchMeasurement, RequestDigest,
    StateLoss, TpmTransport, host_qualifying_data,
};
use cert_chain::{AttestationKey, Digest32, Generation, PcrValues, Tenant, TpmName, VmId, VrotId};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use trust_anchor::{AnchorError, SignedQuote, TrustAnchor};

pub use host_log::{HostLog, HostLogProblem, LogContents};
pub use open_layers::OpenLayers;
use turns::{OF_A_VROT, Turns};

/// A handle to the service. The service ends with its last handle.
#[derive(Clone, Debug)]
pub struct HostEvidence {
    requests: mpsc::Sender<Request>,
    log: Arc<HostLog>,
    metrics: Arc<EvidenceMetrics>,
}

/// What the host states about a vRoT that asks.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The VM.
    pub vm: VmId,
    /// Its vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// The vRoT's generation.
    pub generation: Generation,
    /// Name of its identity key.
    pub vik: TpmName,
    /// Names of its endorsement keys.
    pub eks: Vec<TpmName>,
    /// How its host anchors its state.
    pub anchoring: Anchoring,
    /// Whether a loss of power may have cut off some of it.
    pub cut_off: CutOff,
    /// Whether the end of a backend may have lost some of it.
    pub state_loss: StateLoss,
    /// What was measured of the VM before it was started.
    pub launch: LaunchMeasurement,
    /// How the VM reaches its TPM.
    pub transport: TpmTransport,
}

/// What the service has done so far.
#[derive(Debug, Default)]
pub struct EvidenceMetrics {
    quotes: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    pending: AtomicU64,
}

/// The host IK, as far as evidence needs it.
pub trait HostQuoter: Send + Sync + 'static {
    /// The key.
    fn identity_key(&self) -> impl Future<Output = Result<AttestationKey, AnchorError>> + Send;

    /// A quote over the host's PCRs.
    fn quote(
        &self,
        qualifying_data: Digest32,
    ) -> impl Future<Output = Result<SignedQuote, AnchorError>> + Send;

    /// The PCRs that quotes are of. Nothing shows that the TPM said so: good to warn by.
    fn quoted_pcrs(&self) -> impl Future<Output = Result<PcrValues, AnchorError>> + Send;
}

/// Why there is no evidence. Cheap to copy: everybody who had a part in the batch is told.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostEvidenceError {
    /// The TPM did not quote.
    #[error("the physical TPM made no quote")]
    Anchor(#[source] Arc<AnchorError>),
    /// More requests wait than can be served.
    #[error("too many requests for host evidence wait already; of one vRoT {OF_A_VROT} may")]
    Busy,
    /// The event log cannot be read.
    #[error("there is no event log to give")]
    EventLog(#[source] HostLogProblem),
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The quote carries no ECDSA signature.
    #[error("the physical TPM made a quote whose signature cannot be read")]
    Signature,
    /// The service has ended.
    #[error("the manager is shutting down")]
    Stopped,
}

/// Requests on their way to the service, which takes them at once.
const QUEUE: usize = 4096;
/// Between two questions for the host's PCRs, until there is an answer.
const LEARNING_PAUSE: Duration = Duration::from_secs(5);
/// Leaves of one tree: paths stay within twelve steps.
const MAX_BATCH: usize = 4096;

impl HostEvidence {
    /// A handle, and the service that answers it as long as it is run.
    pub fn new(
        quoter: impl HostQuoter,
        event_log: &Path,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let metrics = Arc::new(EvidenceMetrics::default());
        let log = Arc::new(HostLog::new(event_log.to_owned()));
        let service = Service {
            quoter,
            file: Arc::clone(&log),
            identity_key: None,
            log: None,
            metrics: Arc::clone(&metrics),
        };
        let evidence = Self {
            requests: sender,
            log,
            metrics,
        };
        (evidence, service.run(requests))
    }

    /// The host layer for one request of a vRoT's guest.
    pub async fn layer(
        &self,
        subject: &Subject,
        durability: Durability,
        request: RequestDigest,
    ) -> Result<SharedHostLayer, HostEvidenceError> {
        let (answer, answered) = oneshot::channel();
        let leaf = leaf(subject, durability, request)?;
        self.requests
            .try_send(Request { leaf, answer })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => HostEvidenceError::Busy,
                mpsc::error::TrySendError::Closed(_) => HostEvidenceError::Stopped,
            })?;
        answered.await.unwrap_or(Err(HostEvidenceError::Stopped))
    }

    /// The host's event log.
    pub fn log(&self) -> &HostLog {
        &self.log
    }

    /// What the service has done so far.
    pub fn metrics(&self) -> &EvidenceMetrics {
        &self.metrics
    }
}

impl EvidenceMetrics {
    /// Quotes made.
    pub fn quotes(&self) -> u64 {
        self.quotes.load(Ordering::Relaxed)
    }

    /// Requests answered with evidence.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests beyond the quota of the vRoT that made them.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// One more of those.
    pub fn count_refusal(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that got none because the certificate of the identity key was pending.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// One more of those.
    pub fn count_pending(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that got none.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl HostQuoter for TrustAnchor {
    async fn identity_key(&self) -> Result<AttestationKey, AnchorError> {
        Ok(self.host_public().await?.ik_public)
    }

    async fn quote(&self, qualifying_data: Digest32) -> Result<SignedQuote, AnchorError> {
        TrustAnchor::quote(self, qualifying_data).await
    }

    async fn quoted_pcrs(&self) -> Result<PcrValues, AnchorError> {
        TrustAnchor::quoted_pcrs(self).await
    }
}

struct Request {
    leaf: HostLeaf,
    answer: oneshot::Sender<Result<SharedHostLayer, HostEvidenceError>>,
}

struct Service<Q> {
    quoter: Q,
    file: Arc<HostLog>,
    identity_key: Option<AttestationKey>,
    /// The digest of the log as it was read last.
    log: Option<Digest32>,
    metrics: Arc<EvidenceMetrics>,
}

impl<Q: HostQuoter> Service<Q> {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // Before the first device is shown the log.
        self.learn_pcrs().await;
        tell(self.file.check().await);
        let mut turns = Turns::new();
        while !turns.is_empty() || self.next(&mut requests, &mut turns).await {
            while let Ok(request) = requests.try_recv() {
                take_up(&mut turns, request);
            }
            let (leaves, answers): (Vec<_>, Vec<_>) = turns
                .take(MAX_BATCH)
                .into_iter()
                .map(|request: Request| (request.leaf, request.answer))
                .unzip();
            let layers = {
                let mut quoting = pin!(self.layers(&leaves));
                loop {
                    tokio::select! {
                        layers = &mut quoting => break layers,
                        Some(request) = requests.recv() => take_up(&mut turns, request),
                    }
                }
            };
            match layers {
                Ok(layers) => {
                    self.metrics.quotes.fetch_add(1, Ordering::Relaxed);
                    self.metrics
                        .answered
                        .fetch_add(layers.len() as u64, Ordering::Relaxed);
                    for (answer, layer) in answers.into_iter().zip(layers) {
                        // A guest that went away meanwhile needs no answer.
                        let _ = answer.send(Ok(layer));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, requests = answers.len(), "no host evidence");
                    self.metrics
                        .failed
                        .fetch_add(answers.len() as u64, Ordering::Relaxed);
                    for answer in answers {
                        let _ = answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Waits for a request; `false`, if there will be none any more. Until the TPM has shown the host's
    /// PCRs, it is asked again meanwhile.
    async fn next(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        turns: &mut Turns<Request>,
    ) -> bool {
        let request = loop {
            if self.file.knows_pcrs() {
                break requests.recv().await;
            }
            if let Ok(request) = timeout(LEARNING_PAUSE, requests.recv()).await {
                break request;
            }
            if self.learn_pcrs().await {
                tell(self.file.check().await);
            }
        };
        request.map(|request| take_up(turns, request)).is_some()
    }

    /// Asks the TPM for the PCRs that are quoted; whether it showed them.
    async fn learn_pcrs(&self) -> bool {
        match self.quoter.quoted_pcrs().await {
            Ok(pcrs) => {
                self.file.note_pcrs(&pcrs);
                true
            }
            Err(error) => {
                tracing::debug!(error = %WithCauses(&error), "the host's PCRs are not known yet");
                false
            }
        }
    }

    /// One quote over all leaves, and each leaf's own layer.
    async fn layers(
        &mut self,
        leaves: &[HostLeaf],
    ) -> Result<Vec<SharedHostLayer>, HostEvidenceError> {
        let identity_key = match &self.identity_key {
            Some(key) => key.clone(),
            None => {
                let key = self.quoter.identity_key().await.map_err(anchor)?;
                self.identity_key.insert(key).clone()
            }
        };
        let log = self
            .file
            .read()
            .await
            .map_err(HostEvidenceError::EventLog)?;
        let is_other_log = self.log.replace(log.digest) != Some(log.digest);
        let event_log_digest = log.digest;
        let Some(tree) = Tree::new(leaves.iter().map(HostLeaf::hash).collect()) else {
            return Ok(Vec::new());
        };
        let (root, tree_size) = (tree.root(), tree.size());
        let qualifying_data =
            host_qualifying_data(&root, tree_size, &identity_key.name(), &event_log_digest);
        let quote = self.quoter.quote(qualifying_data).await.map_err(anchor)?;
        let signature =
            canonical_signature(&quote.signature).map_err(|_| HostEvidenceError::Signature)?;
        if self.file.note_pcrs(&quote.pcrs) || is_other_log {
            tell(self.file.check_against_pcrs(&log));
        }
        Ok(leaves
            .iter()
            .enumerate()
            .map(|(index, leaf)| {
                let layer = HostLayer {
                    attest: quote.attest.clone().into(),
                    signature: signature.clone().into(),
                    host_ik_public: identity_key.public_area().as_bytes().to_vec().into(),
                    event_log_digest,
                    event_log: Vec::new().into(),
                    root,
                    tree_size,
                    index: index as u64,
                    path: tree.path(index).unwrap_or_default(),
                    leaf: leaf.encode().into(),
                    pcr_values: quote.pcrs.to_bytes().into(),
                };
                SharedHostLayer::new(&layer, Arc::clone(&log.bytes))
            })
            .collect())
    }
}

/// Puts a request among those that wait, unless too many of its vRoT do.
fn take_up(turns: &mut Turns<Request>, request: Request) {
    if let Err(request) = turns.push(request.leaf.vrot, request) {
        // A guest that went away needs no answer.
        let _ = request.answer.send(Err(HostEvidenceError::Busy));
    }
}

fn leaf(
    subject: &Subject,
    durability: Durability,
    request: RequestDigest,
) -> Result<HostLeaf, HostEvidenceError> {
    let mut salt = [0; 32];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| HostEvidenceError::Random)?;
    Ok(HostLeaf {
        salt: Digest32::new(salt),
        vm: subject.vm,
        vrot: subject.vrot,
        tenant: subject.tenant.clone(),
        generation: subject.generation,
        vik: subject.vik.clone(),
        eks: subject.eks.clone(),
        launch: subject.launch.clone(),
        request,
        durability,
        anchoring: subject.anchoring,
        cut_off: subject.cut_off,
        state_loss: subject.state_loss,
        transport: subject.transport,
    })
}

/// Says what is wrong with the host's event log before a device refuses a VM for it.
fn tell(checked: Result<(), HostLogProblem>) {
    match checked {
        Ok(()) => tracing::info!("the host's event log accounts for the host's PCRs"),
        Err(problem @ HostLogProblem::Unchecked { .. }) => tracing::info!("{problem}"),
        Err(problem) => tracing::warn!(
            problem = %WithCauses(&problem),
            "devices refuse every VM of this host"
        ),
    }
}

fn anchor(error: AnchorError) -> HostEvidenceError {
    HostEvidenceError::Anchor(Arc::new(error))
}
