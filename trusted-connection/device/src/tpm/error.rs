//! Why the device's TPM did not do its part.

use std::io;
use std::path::PathBuf;

use attestation::certification::CertificationError;
use attestation::quote::QuoteError;
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::endorsement_key::EndorsementKeyError;
use cert_chain::layout::DATA_COUNTER;
use data_signing::number::CounterProblem;
use tpm_wire::{Operation, ResponseCode};

/// Why the device's TPM did not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// There is no TPM.
    #[error(
        "the TPM {} cannot be opened: it is a device such as /dev/tpmrm0, or the socket of a software \
         TPM, and this user must be allowed to use it (usually by group tss)",
        path.display()
    )]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection to the TPM failed.
    #[error("{operation}: the connection to the TPM failed")]
    Connection {
        /// What it was asked for.
        operation: Operation,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The TPM refused.
    #[error("{operation} failed with {code}")]
    Refused {
        /// What it was asked for.
        operation: Operation,
        /// What it said.
        code: ResponseCode,
    },
    /// The TPM's answer is none.
    #[error("{operation}: the TPM answered with something else")]
    Response {
        /// What it was asked for.
        operation: Operation,
    },
    /// The key that the TPM made is not as the template says.
    #[error("the TPM made another key than it was asked for")]
    IdentityKey(#[source] AttestationKeyError),
    /// The endorsement key is none.
    #[error("the TPM made no endorsement key by its maker's template")]
    EndorsementKey(#[source] EndorsementKeyError),
    /// The endorsement key has no certificate.
    #[error(
        "the TPM has no endorsement key certificate at NV index 0x01c0000a or 0x01c00002, so no issuer \
         can know it. A TPM's maker puts it there (for swtpm: `swtpm_setup --create-ek-cert`)"
    )]
    NoEkCertificate,
    /// A challenge that no issuer makes.
    #[error("the challenge's credential is malformed")]
    Credential,
    /// The TPM's signature cannot be used.
    #[error("the TPM's quote cannot be used")]
    Quote(#[source] QuoteError),
    /// The TPM's signature cannot be used.
    #[error("the TPM's signature cannot be used")]
    Signature(#[source] QuoteError),
    /// What the TPM made and certified is no key for data.
    #[error("what the TPM made is no key for data")]
    DataKey(#[source] CertificationError),
    /// The counter cannot be made.
    #[error(
        "the counter 0x{DATA_COUNTER:08x} cannot be made: {0}; if the TPM's owner has a password, make it once \
         with `tpm2_nvdefine 0x{DATA_COUNTER:08x} -C o -P PASSWORD -a \
         \"nt=counter|authread|authwrite|no_da\"`"
    )]
    Counter(ResponseCode),
    /// There is something else, or no number.
    #[error(transparent)]
    CounterProblem(#[from] CounterProblem),
    /// The PCRs do not hold still.
    #[error(
        "the TPM's PCRs change while they are quoted: leave out of --quoted-pcrs what goes on being \
         extended"
    )]
    PcrsChange,
    /// The TPM has no bank to quote.
    #[error("the TPM has no active PCR bank of sha256, sha384 or sha512 with all PCRs to quote")]
    Bank,
}
