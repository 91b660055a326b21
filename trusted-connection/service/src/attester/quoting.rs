//! One quote of the vRoT for many challenges, and the evidence for each of them.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::event_log::MAX_LOG;
use attestation::evidence::{CarriedCrls, EvidenceError, HostLayer, VmLayer};
use attestation::merkle::Tree;
use attestation::{
    Binding, BootRecord, EventLog, Evidence, HostLeaf, KeyStatement, Nonce, RequestDigest,
    accounted_bank, request_digest, vm_qualifying_data, vm_request_leaf,
};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm};
use printable::WithCauses;
use ring::rand::{SecureRandom, SystemRandom};
use trusted_connection::crl_files::CrlFiles;

use super::{AttesterError, SignedQuote, VmTpm};

/// What evidence is asked for.
#[derive(Clone, Debug)]
pub struct EvidenceRequest {
    /// The verifier's nonce.
    pub nonce: Nonce,
    /// What the evidence is bound to, as this end computed it.
    pub binding: Binding,
    /// The key of the connection, in evidence for one.
    pub tls_key: Option<KeyStatement>,
}

/// The files that evidence is made of.
#[derive(Debug)]
pub struct EvidenceFiles {
    /// The event log of the VM's boot.
    pub event_log: PathBuf,
    /// Revocation lists, which evidence carries for verifiers that have no other way to get them.
    pub crls: CrlFiles,
}

/// Makes quotes. What goes with every quote of a boot is found out once.
#[derive(Debug)]
pub struct Quoter<T> {
    tpm: T,
    files: EvidenceFiles,
    boot: Option<Arc<KnownBoot>>,
    identity: Option<Arc<Identity>>,
}

/// The event log as it was read last, or that there was none.
#[derive(Debug)]
struct KnownBoot {
    record: BootRecord,
    /// Where the log would be.
    path: PathBuf,
    /// The bank that is quoted because of it.
    bank: HashAlgorithm,
}

/// The vIK and its certificates.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The vIK as `TPMT_PUBLIC`.
    pub(crate) vik_public: Vec<u8>,
    /// Its certificate and the host's.
    pub(crate) chain: Vec<Vec<u8>>,
    read_at: Instant,
}

/// Challenges under one quote, which the host has to answer for.
#[derive(Debug)]
pub struct Quoted {
    /// What the host is asked for.
    pub request: RequestDigest,
    quote: SignedQuote,
    boot: Arc<KnownBoot>,
    identity: Arc<Identity>,
    tree: Tree,
    requests: Vec<(EvidenceRequest, Digest32)>,
    crls: CarriedCrls,
}

/// The manager renews certificates long before they end; so old a one is read anew.
const REREAD: Duration = Duration::from_secs(60);

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

impl<T: VmTpm> Quoter<T> {
    /// Quotes with this TPM, which the event log among these files is of.
    pub fn new(tpm: T, files: EvidenceFiles) -> Self {
        Self {
            tpm,
            files,
            boot: None,
            identity: None,
        }
    }

    /// Quotes the vRoT's PCRs for all these requests.
    pub fn quote(&mut self, requests: Vec<EvidenceRequest>) -> Result<Quoted, AttesterError> {
        let boot = self.boot()?;
        let identity = self.identity()?;
        let requests = requests
            .into_iter()
            .map(|request| Ok((request, random_salt()?)))
            .collect::<Result<Vec<_>, AttesterError>>()?;
        let leaves = requests
            .iter()
            .map(|(request, salt)| {
                let tls_key = request.tls_key.as_ref().map(KeyStatement::digest);
                vm_request_leaf(salt, &request.nonce, &request.binding, tls_key.as_ref())
            })
            .collect();
        let tree = Tree::new(leaves).ok_or(AttesterError::NoRequest)?;
        let qualifying_data = vm_qualifying_data(&tree.root(), tree.size(), &boot.record);
        let quote = self.tpm.quote(boot.bank, &qualifying_data)?;
        Ok(Quoted {
            request: request_digest(&quote.attest, &quote.signature),
            quote,
            boot,
            identity,
            tree,
            requests,
            // A device that needs no list does without; one that does says so.
            crls: self.files.carried().unwrap_or_else(|error| {
                tracing::warn!(%error, "the evidence carries no revocation list");
                CarriedCrls::default()
            }),
        })
    }

    /// The log is read for each quote, since it may have grown; it is hashed and understood only if it
    /// has. Where there is none, there is none to go with the quote: whether there has to be one, the
    /// host's answer says.
    fn boot(&mut self) -> Result<Arc<KnownBoot>, AttesterError> {
        let path = self.files.event_log.clone();
        let log = match read_bounded(&path, MAX_LOG) {
            Ok(log) => Some(log),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(source) => return Err(AttesterError::EventLog { path, source }),
        };
        let known = self.boot.as_ref();
        if let Some(known) = known.filter(|known| known.record.log() == log.as_deref()) {
            return Ok(Arc::clone(known));
        }
        let bank = bank_to_quote(&mut self.tpm, log.as_deref())?;
        let record = match log {
            Some(log) => BootRecord::of_log(log),
            None => {
                tracing::warn!(path = %path.display(), "there is no event log: evidence goes without");
                BootRecord::PcrsAlone
            }
        };
        let known = Arc::new(KnownBoot { record, path, bank });
        Ok(Arc::clone(self.boot.insert(known)))
    }

    /// The vIK and its certificates, which are read anew now and then.
    pub(crate) fn identity(&mut self) -> Result<Arc<Identity>, AttesterError> {
        let known = self.identity.as_ref();
        if let Some(known) = known.filter(|known| known.read_at.elapsed() < REREAD) {
            return Ok(Arc::clone(known));
        }
        match (self.read_identity(), &self.identity) {
            (Ok(identity), _) => Ok(Arc::clone(self.identity.insert(Arc::new(identity)))),
            (Err(error), Some(known)) => {
                tracing::warn!(error = %WithCauses(&error), "the certificates cannot be read anew");
                Ok(Arc::clone(known))
            }
            (Err(error), None) => Err(error),
        }
    }

    fn read_identity(&mut self) -> Result<Identity, AttesterError> {
        Ok(Identity {
            vik_public: self.tpm.vik_public()?,
            chain: self.tpm.certificates()?,
            read_at: Instant::now(),
        })
    }
}

impl Quoted {
    /// The evidence for each request in turn, with what the host answered.
    pub fn complete(
        self,
        host_layer: &[u8],
    ) -> Result<impl Iterator<Item = Evidence> + use<>, AttesterError> {
        let host = HostLayer::from_cbor(host_layer).map_err(AttesterError::HostLayer)?;
        self.boot.check_beside(&host)?;
        let Self {
            quote,
            boot,
            identity,
            tree,
            requests,
            crls,
            ..
        } = self;
        let requests = requests.into_iter().enumerate();
        Ok(requests.map(move |(index, (request, salt))| {
            let vm = VmLayer {
                nonce: request.nonce,
                binding: request.binding,
                attest: quote.attest.clone().into(),
                signature: quote.signature.clone().into(),
                vik_public: identity.vik_public.clone().into(),
                boot: boot.record.clone(),
                chain: identity.chain.iter().cloned().map(Into::into).collect(),
                pcr_values: quote.pcrs.to_bytes().into(),
                salt,
                tree_size: tree.size(),
                index: index as u64,
                path: tree.path(index).unwrap_or_default(),
                tls_key: request.tls_key,
            };
            Evidence::new(vm, host.clone()).carrying(crls.clone())
        }))
    }
}

impl KnownBoot {
    /// A log is missing for a reason where no firmware measures into the TPM. Elsewhere something is
    /// wrong in this VM, and evidence without its log would be refused or, by a policy that accepts it,
    /// judged by less.
    fn check_beside(&self, host: &HostLayer) -> Result<(), AttesterError> {
        let measured = || {
            let leaf = HostLeaf::decode(&host.leaf);
            leaf.is_none_or(|leaf| leaf.transport.reaches_firmware())
        };
        if self.record == BootRecord::PcrsAlone && measured() {
            let path = self.path.clone();
            return Err(AttesterError::EventLogAbsent { path });
        }
        Ok(())
    }
}

fn random_salt() -> Result<Digest32, AttesterError> {
    let mut salt = [0; 32];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| AttesterError::Random)?;
    Ok(Digest32::new(salt))
}

/// The first bank that the log accounts for; where it accounts for none, the first at all. What the
/// log lacks then, the verifier says. Without a log the first, too.
fn bank_to_quote(tpm: &mut impl VmTpm, log: Option<&[u8]>) -> Result<HashAlgorithm, AttesterError> {
    let banks = tpm.banks()?;
    let first = banks.first().copied().ok_or(AttesterError::Bank)?;
    let Some(Ok(log)) = log.map(EventLog::parse) else {
        return Ok(first);
    };
    Ok(
        accounted_bank(&log, &banks, tpm.quoted()).unwrap_or_else(|error| {
            tracing::warn!(%error, bank = %first, "the event log accounts for no bank of the vRoT");
            first
        }),
    )
}
