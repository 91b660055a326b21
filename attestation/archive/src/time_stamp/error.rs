//! Why a time stamp proves nothing.

use cert_chain::ChainError;

use crate::hashing::UnknownHash;

/// Why a time stamp, or an authority's answer, is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimeStampError {
    /// Its certificate.
    #[error(
        "the time-stamp authority's certificate does not lead to a root that is trusted for telling time"
    )]
    Authority(#[source] ChainError),
    /// An extension that has to be understood.
    #[error("the time stamp has a critical extension ({0}) that is not understood")]
    Extension(String),
    /// From the future.
    #[error(
        "the time stamp says {time} (Unix time), which is after {at}, as of which it is verified"
    )]
    Future {
        /// The stamp's.
        time: u64,
        /// Of the verification.
        at: u64,
    },
    /// A weak hash.
    #[error("the time stamp is of a hash value that is not read")]
    Hash(#[from] UnknownHash),
    /// Of something else.
    #[error(
        "the time stamp is of another hash value: what it was made for was altered, or was something else"
    )]
    Imprint,
    /// Not CMS, or not as RFC 3161 has it.
    #[error("the time stamp is malformed: {0}")]
    Malformed(&'static str),
    /// Not DER.
    #[error("the time stamp is no valid DER ({0})")]
    Der(#[from] der::Error),
    /// Of another request.
    #[error("the answer is to another request: its nonce differs")]
    Nonce,
    /// Refused.
    #[error("the time-stamp authority refused (status {status}): {text}")]
    Refused {
        /// `PKIStatus`.
        status: u8,
        /// What it said.
        text: String,
    },
    /// The signature.
    #[error("the time stamp's signature is not that of the authority")]
    Signature(#[source] ChainError),
    /// The signer's certificate is not in it.
    #[error(
        "the certificate of whoever signed the time stamp is not in it: ask with certificates (certReq)"
    )]
    SignerMissing,
    /// More bytes than it may have.
    #[error("{length} bytes are too many for a time stamp: {limit} is the most")]
    TooLong {
        /// How many.
        length: usize,
        /// The most.
        limit: usize,
    },
}
