//! One quote of the vRoT for many challenges, and the evidence for each of them.

use std::path::{Path, PathBuf};

use attestation::event_log::MAX_LOG;
use attestation::evidence::{CarriedCrls, EvidenceError, HostLayer, VmLayer};
use attestation::merkle::Tree;
use attestation::{
    Binding, EventLog, Evidence, Nonce, RequestDigest, TlsKeyStatement, accounted_bank,
    request_digest, vm_qualifying_data, vm_request_leaf,
};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm};
use ring::rand::{SecureRandom, SystemRandom};
use trusted_connection::crl_files::CrlFiles;

use super::{AttesterError, VmTpm};

/// What evidence is asked for.
#[derive(Clone, Debug)]
pub struct EvidenceRequest {
    /// The verifier's nonce.
    pub nonce: Nonce,
    /// What the evidence is bound to, as this end computed it.
    pub binding: Binding,
    /// The key of the connection, in evidence for one.
    pub tls_key: Option<TlsKeyStatement>,
}

/// The files that evidence is made of.
#[derive(Debug)]
pub struct EvidenceFiles {
    /// The event log of the VM's boot.
    pub event_log: PathBuf,
    /// Revocation lists, which evidence carries for verifiers that have no other way to get them.
    pub crls: CrlFiles,
}

/// Challenges under one quote, which the host has to answer for.
#[derive(Debug)]
pub struct Quoted {
    /// What the host is asked for.
    pub request: RequestDigest,
    layers: Vec<VmLayer>,
    crls: CarriedCrls,
}

impl From<PathBuf> for EvidenceFiles {
    /// An event log, and no revocation lists.
    fn from(event_log: PathBuf) -> Self {
        Self {
            event_log,
            crls: CrlFiles::default(),
        }
    }
}

impl EvidenceFiles {
    /// The revocation lists, unless evidence would have no room for them.
    pub fn carried(&self) -> Result<CarriedCrls, EvidenceError> {
        let lists = self.crls.lists();
        let carried = CarriedCrls::new(lists.iter().map(|list| list.der().to_vec()));
        carried.check_lengths()?;
        Ok(carried)
    }
}

impl Quoted {
    /// Quotes the vRoT's PCRs for all these requests.
    pub fn new(
        tpm: &mut impl VmTpm,
        files: &EvidenceFiles,
        requests: Vec<EvidenceRequest>,
    ) -> Result<Self, AttesterError> {
        let log = read_event_log(&files.event_log)?;
        let event_log_digest = Digest32::of(&log);
        let vik_public = tpm.vik_public()?;
        let chain = tpm.certificates()?;
        let bank = bank_to_quote(tpm, &log)?;
        let salts = requests
            .iter()
            .map(|_| random_salt())
            .collect::<Result<Vec<_>, _>>()?;
        let leaves = requests
            .iter()
            .zip(&salts)
            .map(|(request, salt)| {
                let tls_key = request.tls_key.as_ref().map(TlsKeyStatement::digest);
                vm_request_leaf(salt, &request.nonce, &request.binding, tls_key.as_ref())
            })
            .collect();
        let tree = Tree::new(leaves).ok_or(AttesterError::NoRequest)?;
        let qualifying_data = vm_qualifying_data(&tree.root(), tree.size(), &event_log_digest);
        let quote = tpm.quote(bank, &qualifying_data)?;
        let layers = requests
            .into_iter()
            .zip(salts)
            .enumerate()
            .map(|(index, (request, salt))| VmLayer {
                nonce: request.nonce,
                binding: request.binding,
                attest: quote.attest.clone().into(),
                signature: quote.signature.clone().into(),
                vik_public: vik_public.clone().into(),
                event_log_digest,
                event_log: log.clone().into(),
                chain: chain.iter().cloned().map(Into::into).collect(),
                pcr_values: quote.pcrs.to_bytes().into(),
                salt,
                tree_size: tree.size(),
                index: index as u64,
                path: tree.path(index).unwrap_or_default(),
                tls_key: request.tls_key,
            })
            .collect();
        Ok(Self {
            request: request_digest(&quote.attest, &quote.signature),
            layers,
            // A device that needs no list does without; one that does says so.
            crls: files.carried().unwrap_or_else(|error| {
                tracing::warn!(%error, "the evidence carries no revocation list");
                CarriedCrls::default()
            }),
        })
    }

    /// The evidence for each request in turn, with what the host answered.
    pub fn complete(self, host_layer: &[u8]) -> Result<Vec<Evidence>, AttesterError> {
        let host = HostLayer::from_cbor(host_layer).map_err(AttesterError::HostLayer)?;
        Ok(self
            .layers
            .into_iter()
            .map(|vm| Evidence::new(vm, host.clone()).carrying(self.crls.clone()))
            .collect())
    }
}

fn read_event_log(path: &Path) -> Result<Vec<u8>, AttesterError> {
    read_bounded(path, MAX_LOG).map_err(|source| AttesterError::EventLog {
        path: path.to_owned(),
        source,
    })
}

fn random_salt() -> Result<Digest32, AttesterError> {
    let mut salt = [0; 32];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| AttesterError::Random)?;
    Ok(Digest32::new(salt))
}

/// The first bank that the log accounts for; where it accounts for none, the first at all. What the
/// log lacks then, the verifier says.
fn bank_to_quote(tpm: &mut impl VmTpm, log: &[u8]) -> Result<HashAlgorithm, AttesterError> {
    let banks = tpm.banks()?;
    let first = banks.first().copied().ok_or(AttesterError::Bank)?;
    let Ok(log) = EventLog::parse(log) else {
        return Ok(first);
    };
    Ok(
        accounted_bank(&log, &banks, tpm.quoted()).unwrap_or_else(|error| {
            tracing::warn!(%error, bank = %first, "the event log accounts for no bank of the vRoT");
            first
        }),
    )
}
