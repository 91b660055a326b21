//! Host evidence: one quote of the physical TPM for every request that arrived while the one
//! before was being made.
//!
//! Each request becomes a salted leaf ([`HostLeaf`]) of a Merkle tree (RFC 9162); the quote signs
//! the tree's root. A requester gets the quote, its own leaf and the path to the root, and learns
//! nothing of its neighbours from them, not even how many there are. So the rate of evidence does not depend on how slowly the TPM signs, and
//! a vRoT that floods its host takes nothing from others: each has its turn.

mod hidden_tree;
mod host_log;
mod open_layers;
mod statements;
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
use attestation::quote::canonical_signature;
use attestation::{
    Anchoring, CutOff, Durability, HostLayer, HostLeaf, LaunchMeasurement, QuotePurpose,
    RequestDigest, StateLoss, TpmTransport, host_qualifying_data,
};
use cert_chain::{AttestationKey, Digest32, Generation, PcrValues, Tenant, TpmName, VmId, VrotId};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use trust_anchor::{AnchorError, SignedQuote, TrustAnchor};

use hidden_tree::HiddenTree;
pub use host_log::{HostLog, HostLogProblem, LogContents};
pub use open_layers::OpenLayers;
use statements::{Group, Groups, MAX_STATEMENTS};
pub use statements::{Place, SignedStatements};
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
/// Requests of guests under one quote.
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
        let leaf = leaf(subject, durability, request, QuotePurpose::Service)?;
        let leaf = Box::new(leaf);
        self.ask(Request::Layer { leaf, answer })?;
        answered.await.unwrap_or(Err(HostEvidenceError::Stopped))
    }

    /// The host's statements about quotes that it had made itself, all under one quote of its own. No
    /// guest can ask for them.
    pub async fn statements(
        &self,
        quoted: &[(Subject, Durability, RequestDigest)],
    ) -> Result<(Vec<HostLeaf>, SignedStatements), HostEvidenceError> {
        if quoted.len() > MAX_STATEMENTS {
            return Err(HostEvidenceError::Busy);
        }
        let leaves = quoted
            .iter()
            .map(|(subject, durability, request)| {
                leaf(subject, *durability, *request, QuotePurpose::Tenant)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Statements(Group {
            leaves: leaves.clone(),
            answer,
        }))?;
        let signed = answered.await.unwrap_or(Err(HostEvidenceError::Stopped))?;
        Ok((leaves, signed))
    }

    fn ask(&self, request: Request) -> Result<(), HostEvidenceError> {
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => HostEvidenceError::Busy,
                mpsc::error::TrySendError::Closed(_) => HostEvidenceError::Stopped,
            })
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

enum Request {
    /// Of a guest.
    Layer {
        leaf: Box<HostLeaf>,
        answer: LayerAnswer,
    },
    /// Of the host's own.
    Statements(Group),
}

type LayerAnswer = oneshot::Sender<Result<SharedHostLayer, HostEvidenceError>>;

/// What waits for a quote.
struct Waiting {
    layers: Turns<(Box<HostLeaf>, LayerAnswer)>,
    groups: Groups,
}

/// A quote over a tree.
struct SignedTree {
    quote: SignedQuote,
    signature: Vec<u8>,
    identity_key: AttestationKey,
    log: LogContents,
    tree: HiddenTree,
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
        let mut waiting = Waiting {
            layers: Turns::new(),
            groups: Groups::default(),
        };
        while !waiting.is_empty() || self.next(&mut requests, &mut waiting).await {
            while let Ok(request) = requests.try_recv() {
                waiting.take_up(request);
            }
            let layers = waiting.layers.take(MAX_BATCH);
            let groups = waiting.groups.take();
            let mut leaves: Vec<&HostLeaf> = layers.iter().map(|(leaf, _)| &**leaf).collect();
            leaves.extend(groups.iter().flat_map(|group| &group.leaves));
            let signed = {
                let mut quoting = pin!(self.sign(&leaves));
                loop {
                    tokio::select! {
                        signed = &mut quoting => break signed,
                        Some(request) = requests.recv() => waiting.take_up(request),
                    }
                }
            };
            let requests = layers.len() + groups.len();
            match signed {
                Ok(signed) => {
                    self.metrics.quotes.fetch_add(1, Ordering::Relaxed);
                    let count = requests as u64;
                    self.metrics.answered.fetch_add(count, Ordering::Relaxed);
                    signed.answer(layers, groups);
                }
                Err(error) => {
                    tracing::warn!(%error, requests, "no host evidence");
                    let count = requests as u64;
                    self.metrics.failed.fetch_add(count, Ordering::Relaxed);
                    for (_, answer) in layers {
                        let _ = answer.send(Err(error.clone()));
                    }
                    for group in groups {
                        let _ = group.answer.send(Err(error.clone()));
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
        waiting: &mut Waiting,
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
        request.map(|request| waiting.take_up(request)).is_some()
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

    /// One quote over all leaves.
    async fn sign(&mut self, leaves: &[&HostLeaf]) -> Result<SignedTree, HostEvidenceError> {
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
        let hashes: Vec<Digest32> = leaves.iter().map(|leaf| leaf.hash()).collect();
        let tree = HiddenTree::new(&hashes)?;
        let name = identity_key.name();
        let qualifying_data = host_qualifying_data(&tree.root(), tree.size(), &name, &log.digest);
        let quote = self.quoter.quote(qualifying_data).await.map_err(anchor)?;
        let signature =
            canonical_signature(&quote.signature).map_err(|_| HostEvidenceError::Signature)?;
        if self.file.note_pcrs(&quote.pcrs) || is_other_log {
            tell(self.file.check_against_pcrs(&log));
        }
        Ok(SignedTree {
            quote,
            signature,
            identity_key,
            log,
            tree,
        })
    }
}

impl SignedTree {
    /// Tells everybody who waited: first those who asked for a layer, then the groups, as the leaves
    /// are.
    fn answer(self, layers: Vec<(Box<HostLeaf>, LayerAnswer)>, groups: Vec<Group>) {
        let mut places = self.tree.places().iter().copied();
        for (leaf, answer) in layers {
            let Some(place) = places.next() else { return };
            // A guest that went away meanwhile needs no answer.
            let _ = answer.send(Ok(self.layer(&leaf, place)));
        }
        for Group { leaves, answer } in groups {
            let places = places.by_ref().take(leaves.len());
            let places = places.map(|place| Place {
                index: place as u64,
                path: self.tree.path(place).unwrap_or_default(),
            });
            let _ = answer.send(Ok(SignedStatements {
                attest: self.quote.attest.clone(),
                signature: self.signature.clone(),
                host_ik_public: self.identity_key.public_area().as_bytes().to_vec(),
                event_log: Arc::clone(&self.log.bytes),
                event_log_digest: self.log.digest,
                root: self.tree.root(),
                tree_size: self.tree.size(),
                pcr_values: self.quote.pcrs.to_bytes(),
                places: places.collect(),
            }));
        }
    }

    fn layer(&self, leaf: &HostLeaf, place: usize) -> SharedHostLayer {
        let layer = HostLayer {
            attest: self.quote.attest.clone().into(),
            signature: self.signature.clone().into(),
            host_ik_public: self.identity_key.public_area().as_bytes().to_vec().into(),
            event_log_digest: self.log.digest,
            event_log: Vec::new().into(),
            root: self.tree.root(),
            tree_size: self.tree.size(),
            index: place as u64,
            path: self.tree.path(place).unwrap_or_default(),
            leaf: leaf.encode().into(),
            pcr_values: self.quote.pcrs.to_bytes().into(),
        };
        SharedHostLayer::new(&layer, Arc::clone(&self.log.bytes))
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.groups.is_empty()
    }

    /// Puts a request among those that wait, unless too many of its kind do.
    fn take_up(&mut self, request: Request) {
        match request {
            Request::Layer { leaf, answer } => {
                if let Err((_, answer)) = self.layers.push(leaf.vrot, (leaf, answer)) {
                    // A guest that went away needs no answer.
                    let _ = answer.send(Err(HostEvidenceError::Busy));
                }
            }
            Request::Statements(group) => self.groups.push(group),
        }
    }
}

fn leaf(
    subject: &Subject,
    durability: Durability,
    request: RequestDigest,
    purpose: QuotePurpose,
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
        purpose,
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
