//! Why evidence is refused before it is appraised.

use std::error::Error as _;
use std::fmt;

use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::path::ChainError;
use cert_chain::public_area::PublicAreaError;
use cert_chain::{HashAlgorithm, HostName, RevocationError, TpmName};

use crate::binding::Binding;
use crate::certification::CertificationError;
use crate::event_log::{EventLogError, MissingDigest};
use crate::host_leaf::QuotePurpose;
use crate::merkle::PathError;
use crate::quote::QuoteError;

/// One of the two layers of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The physical host.
    Host,
    /// The VM.
    Vm,
}

/// The one layer of a device's evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device;

/// Why evidence proves nothing. Every variant has a [code](Refusal::code) that stays the same. `L` is
/// what evidence of its kind has layers of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal<L = Layer> {
    /// Made for another purpose.
    #[error("the evidence is for {found}, but was asked for {expected}")]
    Binding {
        /// What it is for.
        found: Box<Binding>,
        /// What it should be for.
        expected: Box<Binding>,
    },
    /// The certificates do not lead from the attestation key to a trusted root.
    #[error("the certificates do not lead from the attestation key to a trusted issuer")]
    Chain(#[source] ChainError),
    /// The event log is not the one that its layer names.
    #[error("the {0}'s event log was altered: its digest is not the one that goes with the quote")]
    EventLogAltered(L),
    /// The event log tells of nothing that was measured into the quoted bank.
    #[error(
        "the {layer}'s event log tells of no measurement in the {bank} bank, which its TPM quoted"
    )]
    EventLogBank {
        /// Whose log.
        layer: L,
        /// The bank.
        bank: HashAlgorithm,
    },
    /// The event log leaves a PCR open that was quoted.
    #[error("the {layer}'s event log leaves open what a quoted PCR holds")]
    EventLogGap {
        /// Whose log.
        layer: L,
        /// Which one.
        #[source]
        source: MissingDigest,
    },
    /// The event log cannot be read.
    #[error("the {layer}'s event log cannot be read")]
    EventLogMalformed {
        /// Whose log.
        layer: L,
        /// Why.
        #[source]
        source: EventLogError,
    },
    /// The event log does not account for the PCRs that were quoted.
    #[error(
        "the {layer}'s event log does not account for what its TPM quoted in {} ({bank})",
        listed(pcrs)
    )]
    EventLogReplay {
        /// Whose log.
        layer: L,
        /// The quoted bank.
        bank: HashAlgorithm,
        /// The PCRs that hold something else than the log leads to, in rising order.
        pcrs: Vec<u8>,
    },
    /// The host layer is another host's.
    #[error(
        "the host layer was signed by the key {found}, but {host}, which vouches for the VM, has the key {expected}"
    )]
    HostMismatch {
        /// The host of the VM layer.
        host: HostName,
        /// Name of that host's IK.
        expected: TpmName,
        /// Name of the key in the host layer.
        found: TpmName,
    },
    /// The leaf is not in the tree that the host signed.
    #[error("the host's statement about the VM is not in the tree that the host signed")]
    Inclusion,
    /// The path cannot belong to the leaf.
    #[error("the host's statement about the VM comes with an impossible path")]
    InclusionPath(#[source] PathError),
    /// A key is not an attestation key.
    #[error("the {layer}'s key may not sign evidence")]
    Key {
        /// Whose key.
        layer: L,
        /// Why.
        #[source]
        source: AttestationKeyError,
    },
    /// A key cannot be read.
    #[error("the {layer}'s key cannot be read")]
    KeyMalformed {
        /// Whose key.
        layer: L,
        /// Why.
        #[source]
        source: PublicAreaError,
    },
    /// A key is not the certified one.
    #[error("the {0}'s key is not the one that its certificate names")]
    KeyMismatch(L),
    /// Made for another purpose by its kind.
    #[error(
        "the evidence is of the purpose `{}`, but `{}` was asked for",
        found.name(),
        expected.name()
    )]
    Purpose {
        /// What it is for.
        found: QuotePurpose,
        /// What it should be for.
        expected: QuotePurpose,
    },
    /// The leaf cannot be read.
    #[error("the host's statement about the VM cannot be read")]
    LeafMalformed,
    /// Leaf and certificate speak of different vRoTs.
    #[error("the host's statement and the vRoT's certificate differ in the {0}")]
    LeafMismatch(&'static str),
    /// Made for another challenge.
    #[error("the evidence answers another challenge: it is old, or somebody else's")]
    Nonce,
    /// The PCR values are not those that were quoted.
    #[error("the {0}'s PCR values are not those that its TPM quoted")]
    PcrValues(L),
    /// The quote covers other data than the evidence shows.
    #[error("the {0}'s quote was made over other data than the evidence shows")]
    QualifyingData(L),
    /// The quote cannot be read or its signature is wrong.
    #[error("the {layer}'s quote is not valid")]
    Quote {
        /// Whose quote.
        layer: L,
        /// Why.
        #[source]
        source: QuoteError,
    },
    /// The path in the VM layer cannot belong to the request.
    #[error("the VM's quote comes with an impossible path to this challenge")]
    RequestPath(#[source] PathError),
    /// The key that authenticates the connection is not shown to be the VM's.
    #[error(
        "the key with which the service authenticates itself is not shown to be in the VM's TPM"
    )]
    TlsKey(#[source] CertificationError),
    /// The connection has another key.
    #[error("the connection was authenticated with another key than the VM's TPM has")]
    TlsKeyMismatch,
    /// Evidence for a connection without a statement about its key.
    #[error("the evidence says nothing about the key with which the connection was authenticated")]
    TlsKeyMissing,
    /// The host layer answers another request.
    #[error("the host layer was made for another quote of the VM")]
    Request,
}

impl<L> Refusal<L> {
    /// A short name for programs, which stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Binding { .. } => "binding",
            Self::Chain(source) => match source {
                ChainError::CertificateCount { .. } => "chain-length",
                ChainError::Expired { .. } => "certificate-expired",
                ChainError::NotYetValid { .. } => "certificate-not-yet-valid",
                ChainError::OtherIssuer => "other-issuer",
                ChainError::Revocation(source) => revocation_code(source),
                ChainError::RootExpired { .. } => "root-expired",
                ChainError::RootNotYetValid { .. } => "root-not-yet-valid",
                ChainError::Signature => "certificate-signature",
                _ => "certificate-chain",
            },
            Self::EventLogAltered(_) => "event-log-altered",
            Self::EventLogBank { .. } => "event-log-bank",
            Self::EventLogGap { .. } => "event-log-gap",
            Self::EventLogMalformed { .. } => "event-log-malformed",
            Self::EventLogReplay { .. } => "event-log-replay",
            Self::HostMismatch { .. } => "host-mismatch",
            Self::Inclusion => "inclusion",
            Self::InclusionPath(_) => "inclusion-path",
            Self::Key {
                source: AttestationKeyError::Decrypts,
                ..
            } => "endorsement-key",
            Self::Key { .. } => "key-attributes",
            Self::KeyMalformed { .. } => "key-malformed",
            Self::KeyMismatch(_) => "key-mismatch",
            Self::LeafMalformed => "leaf-malformed",
            Self::LeafMismatch(_) => "leaf-mismatch",
            Self::Nonce => "nonce",
            Self::PcrValues(_) => "pcr-values",
            Self::Purpose { .. } => "purpose",
            Self::QualifyingData(_) => "qualifying-data",
            Self::Quote { .. } => "quote",
            Self::Request => "request",
            Self::RequestPath(_) => "request-path",
            Self::TlsKey(_) => "tls-key",
            Self::TlsKeyMismatch => "tls-key-mismatch",
            Self::TlsKeyMissing => "tls-key-missing",
        }
    }

    /// The refusal with everything that caused it.
    pub fn explanation(&self) -> String
    where
        L: fmt::Debug + fmt::Display,
    {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }

    /// What the person in front of the verifier can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Nonce => "send a new challenge and appraise only the answer to it",
            Self::Binding { .. } => {
                "treat the answer as relayed: it was made for another connection, or for none"
            }
            Self::Purpose { .. } => {
                "ask for the other kind, or name it with --purpose if it is meant; else treat it as \
                 relayed: a guest cannot answer in its host's place, nor a host in that of a service"
            }
            Self::Chain(ChainError::Expired { .. } | ChainError::NotYetValid { .. }) => {
                "compare the clocks of device and host; the host renews certificates by itself"
            }
            Self::Chain(ChainError::OtherIssuer | ChainError::Signature) => {
                "if the host's issuer is to be trusted, add its root to the policy's roots"
            }
            Self::Chain(ChainError::Revocation(RevocationError::Revoked { .. })) => {
                "do not trust the service; whoever runs the host has to enrol it anew, or to move the \
                 VM's service to another host"
            }
            Self::Chain(ChainError::Revocation(RevocationError::NotYetValid { .. })) => {
                "compare the clocks of device and issuer"
            }
            Self::Chain(ChainError::Revocation(_)) => {
                "get the issuer's newest revocation list (`vtpmctl issuer crl`) and give it to the \
                 device (--crl) or to the service (`vrot-service … --crl`)"
            }
            Self::Chain(ChainError::RootExpired { .. } | ChainError::RootNotYetValid { .. }) => {
                "compare the device's clock, and replace the issuer's root among the policy's roots"
            }
            Self::HostMismatch { .. }
            | Self::Request
            | Self::Inclusion
            | Self::LeafMismatch(_)
            | Self::TlsKeyMismatch => {
                "treat the answer as relayed or composed from several sources"
            }
            Self::EventLogReplay { .. } => {
                "if something goes on extending these PCRs after the boot, have them left out of \
                 what is quoted and let the policy ignore them; otherwise do not trust the service"
            }
            Self::EventLogBank { .. } => {
                "have the firmware measure into this bank (activate it in the firmware's setup), or \
                 the TPM quote another one"
            }
            Self::EventLogGap { .. } => {
                "leave that PCR out of what is quoted and let the policy ignore it, or have the \
                 firmware updated: its log lacks a digest"
            }
            _ => "do not trust the service; keep the evidence for whoever runs the host",
        }
    }
}

fn revocation_code(error: &RevocationError) -> &'static str {
    match error {
        RevocationError::Expired { .. } => "crl-expired",
        RevocationError::Malformed(_) => "crl-malformed",
        RevocationError::Missing => "crl-missing",
        RevocationError::NotYetValid { .. } => "crl-not-yet-valid",
        RevocationError::OtherIssuer => "crl-other-issuer",
        RevocationError::Revoked { .. } => "revoked",
        RevocationError::Signature => "crl-signature",
        RevocationError::TooOld { .. } => "crl-too-old",
        _ => "crl",
    }
}

fn listed(pcrs: &[u8]) -> String {
    let numbers: Vec<String> = pcrs.iter().map(u8::to_string).collect();
    format!("PCR {}", numbers.join(", "))
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Vm => "VM",
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("device")
    }
}
