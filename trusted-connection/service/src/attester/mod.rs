//! The attester in the VM: evidence for a challenge, with the VM's vRoT and its host.

pub mod esys;
pub mod host_evidence;

use std::io;
use std::path::{Path, PathBuf};

use attestation::event_log::MAX_LOG;
use attestation::evidence::{EvidenceError, HostLayer, VmLayer};
use attestation::quote::QuoteError;
use attestation::{
    Binding, EventLog, Evidence, Nonce, RequestDigest, accounted_bank, request_digest,
    vm_qualifying_data, vm_request_leaf,
};
use bounded_file::read_bounded;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection, PcrValues};

use ring::rand::{SecureRandom, SystemRandom};

pub use esys::EsysTpm;
pub use host_evidence::HostEvidenceError;

/// The VM's TPM, and through it the host.
pub trait VmTpm {
    /// The vIK as `TPMT_PUBLIC`.
    fn vik_public(&mut self) -> Result<Vec<u8>, AttesterError>;

    /// The certificates of the vIK and of the host IK in DER.
    fn certificates(&mut self) -> Result<Vec<Vec<u8>>, AttesterError>;

    /// The PCRs that are quoted: by default all [`BOOT_PCRS`], since a device asks for them.
    ///
    /// [`BOOT_PCRS`]: attestation::BOOT_PCRS
    fn quoted(&self) -> PcrSelection;

    /// The PCR banks that may be quoted and have these PCRs, the preferred one first.
    fn banks(&mut self) -> Result<Vec<HashAlgorithm>, AttesterError>;

    /// Quotes [these](VmTpm::quoted) PCRs of a bank with the vIK.
    fn quote(
        &mut self,
        bank: HashAlgorithm,
        qualifying_data: &Digest32,
    ) -> Result<SignedQuote, AttesterError>;

    /// Has the host answer for a quote: a [`HostLayer`] in CBOR.
    fn host_layer(&mut self, request: &RequestDigest) -> Result<Vec<u8>, AttesterError>;
}

/// A quote as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedQuote {
    /// Marshalled `TPMS_ATTEST`.
    pub attest: Vec<u8>,
    /// Marshalled `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// The PCRs that were quoted.
    pub pcrs: PcrValues,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttesterError {
    /// The TPM's certificates cannot be read.
    #[error("the vRoT's NV index 0x{index:08x} does not hold certificates in DER")]
    Certificates {
        /// The NV index.
        index: u32,
    },
    /// The TPM has no bank to quote.
    #[error(
        "the vRoT has no active PCR bank of sha256, sha384 or sha512 with all PCRs to quote, or not \
         the one that was asked for"
    )]
    Bank,
    /// No event log.
    #[error("the event log {} cannot be read: is securityfs mounted?", path.display())]
    EventLog {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host did not answer, or not with a host layer.
    #[error("the host gave no evidence")]
    Host(#[from] HostEvidenceError),
    /// What the host answered is no host layer.
    #[error("what the host answered is no host layer")]
    HostLayer(#[source] EvidenceError),
    /// The PCRs do not hold still.
    #[error(
        "the vRoT's PCRs change while they are quoted: leave out of --quoted-pcrs what goes on being \
         extended"
    )]
    PcrsChange,
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// What the TPM returned is no signature of ours.
    #[error("the TPM's signature cannot be used")]
    Signature(#[source] QuoteError),
    /// The TPM refused.
    #[error("the TPM refused {operation}")]
    Tpm {
        /// What it was asked for.
        operation: &'static str,
        /// What the TSS or TPM said.
        #[source]
        source: tss_esapi::Error,
    },
}

/// Makes evidence for a challenge that came in the clear, which is bound to nothing: first the VM's
/// quote, then the host's over it.
pub fn collect(
    tpm: &mut impl VmTpm,
    event_log: &Path,
    nonce: &Nonce,
) -> Result<Evidence, AttesterError> {
    let log = read_bounded(event_log, MAX_LOG).map_err(|source| AttesterError::EventLog {
        path: event_log.to_owned(),
        source,
    })?;
    let event_log_digest = Digest32::of(&log);
    let vik_public = tpm.vik_public()?;
    let chain = tpm.certificates()?;
    let bank = bank_to_quote(tpm, &log)?;
    let salt = random_salt()?;
    let root = vm_request_leaf(&salt, nonce, &Binding::None, None);
    let quote = tpm.quote(bank, &vm_qualifying_data(&root, 1, &event_log_digest))?;
    let request = request_digest(&quote.attest, &quote.signature);
    let host =
        HostLayer::from_cbor(&tpm.host_layer(&request)?).map_err(AttesterError::HostLayer)?;
    let vm = VmLayer {
        nonce: nonce.clone(),
        binding: Binding::None,
        attest: quote.attest.into(),
        signature: quote.signature.into(),
        vik_public: vik_public.into(),
        event_log_digest,
        event_log: log.into(),
        chain: chain.into_iter().map(Into::into).collect(),
        pcr_values: quote.pcrs.to_bytes().into(),
        salt,
        tree_size: 1,
        index: 0,
        path: Vec::new(),
        tls_key: None,
    };
    Ok(Evidence::new(vm, host))
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
