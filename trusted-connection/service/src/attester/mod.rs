//! The attester in the VM: evidence for challenges, with the VM's vRoT and its host. All challenges that
//! wait share one quote of the vRoT and one request to the host ([`batches`]).

pub mod batches;
pub mod esys;
pub mod host_evidence;
pub(crate) mod pcrs;
pub mod quoting;
pub(crate) mod signing;
pub(crate) mod tss;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use attestation::RequestDigest;
use attestation::evidence::EvidenceError;
use attestation::quote::QuoteError;
use cert_chain::{Digest32, HashAlgorithm, PcrSelection, PcrValues};

pub use esys::EsysTpm;
pub use host_evidence::HostEvidenceError;
pub use tss_context::{NoTpmAddress, TpmAddress};

/// The VM's TPM.
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
}

/// The host below the VM.
pub trait Host: Send + Sync {
    /// Has the host answer for a quote: a [`HostLayer`](attestation::HostLayer) in CBOR. It takes as
    /// long as a physical TPM needs to sign, and several may be asked for at a time.
    fn layer(&self, request: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError>;
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
    /// The TPM's device cannot be opened.
    #[error("{} cannot be opened: {}", device.display(), remedy(source))]
    Device {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has not certified the VM's key yet.
    #[error(
        "the host has not certified this VM's key within {} s: `vtpmctl show` on the host \
         tells why",
        .0.as_secs()
    )]
    Uncertified(Duration),
    /// The TPM has no bank to quote.
    #[error(
        "the vRoT has no active PCR bank of sha256, sha384 or sha512 with all PCRs to quote, or not \
         the one that was asked for"
    )]
    Bank,
    /// Nothing was asked for.
    #[error("no evidence was asked for")]
    NoRequest,
    /// No event log.
    #[error("the event log {} cannot be read: is securityfs mounted?", path.display())]
    EventLog {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No event log, where firmware writes one.
    #[error(
        "there is no event log {}, and the host says that the VM's firmware measures into its TPM: is \
         securityfs mounted?",
        path.display()
    )]
    EventLogAbsent {
        /// Where it would be.
        path: PathBuf,
    },
    /// The host did not answer, or not with a host layer.
    #[error("the host gave no evidence")]
    Host(#[from] HostEvidenceError),
    /// What the host answered is no host layer.
    #[error("what the host answered is no host layer")]
    HostLayer(#[source] EvidenceError),
    /// What the TPM returned is no ECDSA signature.
    #[error("the TPM's signature is not ECDSA on P-256")]
    NotEcdsa,
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

/// What to do about a TPM's device that cannot be opened.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "does the VM have a TPM, and its kernel a driver for it? --tpm names another one"
        }
        io::ErrorKind::PermissionDenied => "its users are root and, on most systems, the group tss",
        _ => "is another program using it? /dev/tpmrm0 can be used by several",
    }
}
