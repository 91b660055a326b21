//! Why signed data prove nothing, or not what was expected.

use attestation::Refusal;
use attestation::certification::CertificationError;
use attestation::evidence::EvidenceError;
use attestation::refusal::Device;
use cert_chain::ChainError;
use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::public_area::PublicAreaError;

use crate::source::Source;
use crate::text::LabelText;

/// Why signed data are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataRefusal {
    /// The certificates.
    #[error("the certificates of the identity key do not lead to a trusted root")]
    Chain(#[source] ChainError),
    /// The identity key cannot be read.
    #[error("the identity key cannot be read")]
    IdentityKeyMalformed(#[source] PublicAreaError),
    /// The identity key is none.
    #[error("the identity key is no attestation key")]
    IdentityKey(#[source] AttestationKeyError),
    /// It is another one than was certified.
    #[error("the identity key is not the one that its certificate is for")]
    IdentityKeyMismatch,
    /// The key is none for data.
    #[error("the key that signed is not certified for data")]
    Key(#[source] CertificationError),
    /// The label names another key.
    #[error("the label names another key than was certified for data")]
    KeyMismatch,
    /// The signature.
    #[error("the signature is not that of the key: data or label were altered")]
    Signature,
    /// The label names another VM or device.
    #[error("the label says {said}; the key is that of {certified}")]
    Source {
        /// The label's.
        said: Source,
        /// The certificate's.
        certified: Source,
    },
    /// The policy is about devices and the source is a VM, or the other way round.
    #[error("the data are of {0}, and the policy is about {policy}", policy = other_kind(.0))]
    PolicyOfOthers(Source),
    /// The data are elsewhere, and were not given.
    #[error("a SHA-256 value is signed here: the data that it is of have to be given")]
    DataMissing,
    /// Other data.
    #[error("the data are not those that were signed")]
    DataMismatch,
    /// From the future.
    #[error(
        "the data say that they were signed {0} s after the time as of which they are verified"
    )]
    Future(u64),
    /// Label and evidence do not go together.
    #[error("the label refers to evidence that is not there, or to none where there is some")]
    EvidenceAbsent,
    /// Other evidence.
    #[error("the evidence is not the one that the label refers to")]
    EvidenceMismatch,
    /// It was taken later than the data were signed.
    #[error("the evidence was taken after the data were signed")]
    EvidenceLater,
    /// It cannot be read.
    #[error("the evidence cannot be read")]
    EvidenceMalformed(#[source] EvidenceError),
    /// It proves nothing.
    #[error("the evidence proves nothing")]
    Evidence(#[source] Box<Refusal>),
    /// The same of a device's.
    #[error("the device's evidence proves nothing")]
    DeviceEvidence(#[source] Box<Refusal<Device>>),
    /// It is of another VM or device.
    #[error("the evidence is of another VM or device than the data")]
    EvidenceOfAnother,
    /// Another stream.
    #[error("the data belong to the stream {found:?}, not to {expected:?}")]
    Stream {
        /// The label's.
        found: LabelText,
        /// The one that is meant.
        expected: LabelText,
    },
    /// A number that was seen before.
    #[error(
        "the data have number {found}, and {after} was seen already: they are replayed or late"
    )]
    Replayed {
        /// The label's.
        found: u64,
        /// The highest that was seen.
        after: u64,
    },
}

impl DataRefusal {
    /// A short name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Chain(_) => "chain",
            Self::IdentityKeyMalformed(_) | Self::IdentityKey(_) | Self::IdentityKeyMismatch => {
                "identity-key"
            }
            Self::Key(_) => "key-purpose",
            Self::KeyMismatch => "key",
            Self::Signature => "signature",
            Self::Source { .. } => "source",
            Self::PolicyOfOthers(_) => "source-unexpected",
            Self::DataMissing => "data-missing",
            Self::DataMismatch => "data",
            Self::Future(_) => "future",
            Self::EvidenceAbsent | Self::EvidenceMismatch | Self::EvidenceLater => "evidence-label",
            Self::EvidenceMalformed(_) | Self::Evidence(_) | Self::DeviceEvidence(_) => "evidence",
            Self::EvidenceOfAnother => "evidence-of-another",
            Self::Stream { .. } => "stream",
            Self::Replayed { .. } => "replayed",
        }
    }
}

/// What a policy is about that says nothing about this source.
fn other_kind(source: &Source) -> &'static str {
    match source {
        Source::Vm(_) => "devices",
        Source::Device(_) => "VMs",
    }
}
