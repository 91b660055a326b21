//! The evidence object as it travels. `evidence.cddl` describes it.
//!
//! Decoding is bounded and strict: what would be encoded differently is refused, so that one
//! piece of evidence has one form.

mod boot_record;
mod carried;
mod log_position;
mod shared;

use cert_chain::Digest32;
use cert_chain::crl::MAX_CRL;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::binding::Binding;
use crate::bounded_cbor::{at_most, has_definite_lengths};
use crate::certification::KeyStatement;
use crate::event_log::MAX_LOG;
use crate::host_leaf::MAX_LEAF;
use crate::merkle::{MAX_PATH, PathError, root_from_path};
use crate::nonce::Nonce;
use crate::qualifying::vm_request_leaf;

pub use boot_record::BootRecord;
pub use carried::{CarriedCrls, MAX_CARRIED};
pub use log_position::LogPosition;
pub use shared::SharedHostLayer;

/// Everything a verifier needs about one VM and its host, for one challenge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Evidence {
    /// Version of the format.
    #[n(0)]
    version: u8,
    /// The VM's own part.
    #[n(1)]
    pub vm: VmLayer,
    /// The host's part, made over the VM's.
    #[n(2)]
    pub host: HostLayer,
    /// Revocation lists, each of which its issuer signed.
    #[n(3)]
    pub crls: CarriedCrls,
}

/// The VM layer: a quote by the vIK.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VmLayer {
    /// The challenge that the quote answers.
    #[n(1)]
    pub nonce: Nonce,
    /// What the evidence is for.
    #[n(2)]
    pub binding: Binding,
    /// `TPMS_ATTEST` of the quote.
    #[n(3)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the vIK.
    #[n(4)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of the vIK.
    #[n(5)]
    pub vik_public: ByteVec,
    /// What accounts for the quoted PCRs.
    #[n(6)]
    pub boot: BootRecord,
    /// Certificates of the vIK and of the host IK, in this order, in DER.
    #[n(7)]
    #[cbor(decode_with = "at_most::<MANY, _, _>")]
    pub chain: Vec<ByteVec>,
    /// The values of the quoted PCRs in rising order: what the quote's digest is of.
    #[n(8)]
    pub pcr_values: ByteVec,
    /// Keeps this request's leaf from being guessed at.
    #[n(9)]
    pub salt: Digest32,
    /// Number of requests that the quote answers.
    #[n(10)]
    pub tree_size: u64,
    /// Number of this one, from zero.
    #[n(11)]
    pub index: u64,
    /// Siblings on the way from this request's leaf to the root of their tree, nearest first.
    #[n(12)]
    pub path: Vec<Digest32>,
    /// The key with which the VM's service authenticates itself in TLS: evidence for a connection
    /// has one.
    #[n(13)]
    pub tls_key: Option<KeyStatement>,
}

/// The host layer: a quote by the host IK over a tree of requests, and the path to one of them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HostLayer {
    /// `TPMS_ATTEST` of the quote.
    #[n(1)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the host IK.
    #[n(2)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of the host IK.
    #[n(3)]
    pub host_ik_public: ByteVec,
    /// SHA-256 value of the event log.
    #[n(4)]
    pub event_log_digest: Digest32,
    /// The host's event log.
    #[n(5)]
    pub event_log: ByteVec,
    /// Root of the tree of requests.
    #[n(6)]
    pub root: Digest32,
    /// Number of leaves in the tree.
    #[n(7)]
    pub tree_size: u64,
    /// Number of our leaf, from zero.
    #[n(8)]
    pub index: u64,
    /// Siblings on the way from our leaf to the root, nearest first.
    #[n(9)]
    pub path: Vec<Digest32>,
    /// Our leaf: an encoded [`HostLeaf`](crate::HostLeaf).
    #[n(10)]
    pub leaf: ByteVec,
    /// The values of the quoted PCRs in rising order: what the quote's digest is of.
    #[n(11)]
    pub pcr_values: ByteVec,
}

/// Why bytes are not evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Not the CBOR that `evidence.cddl` describes.
    #[error("this is no evidence: {0}")]
    Cbor(minicbor::decode::Error),
    /// A part is longer than it can honestly be.
    #[error("{field} has {length} {unit}, more than the {limit} allowed")]
    FieldTooLong {
        /// The part.
        field: &'static str,
        /// What it has.
        length: usize,
        /// The most it may have.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// Not in the one form that evidence has.
    #[error("the evidence is not in deterministic CBOR, or bytes follow it")]
    NotDeterministic,
    /// Larger than any evidence.
    #[error("{length} bytes are too many: {limit} is the most")]
    TooLong {
        /// Number of bytes given.
        length: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Another version of the format.
    #[error("evidence of version {found}: this program reads version {known}")]
    Version {
        /// The version found.
        found: u8,
        /// The version that can be read.
        known: u8,
    },
}

/// Two logs and revocation lists of the largest size, and the rest.
pub const MAX_EVIDENCE: usize = 2 * MAX_LOG + MAX_CRL + 128 * 1024;
/// What one host layer can have: a log of the largest size, and the rest. It passes through the
/// vRoT in parts.
pub const MAX_HOST_LAYER: usize = MAX_LOG + 64 * 1024;
const VERSION: u8 = 3;
/// A quote has at most a few hundred bytes; so have keys and signatures.
pub(crate) const MAX_STRUCTURE: usize = 2048;
pub(crate) const MAX_CERTIFICATE: usize = 4096;
/// Enough to tell "too many certificates" apart from "far too many".
const MAX_CHAIN: usize = 8;
/// No list of certificates or revocation lists is read that has more.
pub(crate) const MANY: u64 = 64;
/// Twenty-four SHA-512 values.
pub(crate) const MAX_PCR_VALUES: usize = 24 * 64;

impl Evidence {
    /// Joins the two layers.
    pub fn new(vm: VmLayer, host: HostLayer) -> Self {
        Self {
            version: VERSION,
            vm,
            host,
            crls: CarriedCrls::default(),
        }
    }

    /// The same with revocation lists.
    #[must_use]
    pub fn carrying(self, crls: CarriedCrls) -> Self {
        Self { crls, ..self }
    }

    /// The evidence as it travels.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads evidence. Nothing about it is verified yet.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let evidence: Self = decoded(bytes, MAX_EVIDENCE)?;
        if evidence.version != VERSION {
            return Err(EvidenceError::Version {
                found: evidence.version,
                known: VERSION,
            });
        }
        evidence.vm.check_lengths()?;
        evidence.host.check_lengths()?;
        evidence.crls.check_lengths()?;
        Ok(evidence)
    }
}

impl HostLayer {
    const FIELDS: u64 = 11;

    /// The layer as it passes from the host through the vRoT to the guest.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads a host layer. Nothing about it is verified yet.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let layer: Self = decoded(bytes, MAX_HOST_LAYER)?;
        layer.check_lengths()?;
        Ok(layer)
    }

    fn check_lengths(&self) -> Result<(), EvidenceError> {
        within("the host's quote", self.attest.len(), MAX_STRUCTURE)?;
        within("the host's signature", self.signature.len(), MAX_STRUCTURE)?;
        within("the host IK", self.host_ik_public.len(), MAX_STRUCTURE)?;
        within("the host's event log", self.event_log.len(), MAX_LOG)?;
        within("the host's PCRs", self.pcr_values.len(), MAX_PCR_VALUES)?;
        within("the host's leaf", self.leaf.len(), MAX_LEAF)?;
        count("the path", self.path.len(), MAX_PATH, "siblings")
    }
}

impl VmLayer {
    /// The leaf of this request in the tree that the quote covers.
    pub fn request_leaf(&self) -> Digest32 {
        let tls_key = self.tls_key.as_ref().map(KeyStatement::digest);
        vm_request_leaf(&self.salt, &self.nonce, &self.binding, tls_key.as_ref())
    }

    /// The root of that tree, if the path can be one of this leaf.
    pub fn request_root(&self) -> Result<Digest32, PathError> {
        root_from_path(self.request_leaf(), self.index, self.tree_size, &self.path)
    }

    fn check_lengths(&self) -> Result<(), EvidenceError> {
        within("the VM's quote", self.attest.len(), MAX_STRUCTURE)?;
        within("the VM's signature", self.signature.len(), MAX_STRUCTURE)?;
        within("the vIK", self.vik_public.len(), MAX_STRUCTURE)?;
        self.boot.check_length()?;
        within("the VM's PCRs", self.pcr_values.len(), MAX_PCR_VALUES)?;
        count("the VM's path", self.path.len(), MAX_PATH, "siblings")?;
        if let Some(key) = &self.tls_key {
            within("the TLS key", key.public.len(), MAX_STRUCTURE)?;
            within("the TLS key's statement", key.attest.len(), MAX_STRUCTURE)?;
            within("its signature", key.signature.len(), MAX_STRUCTURE)?;
        }
        count("the chain", self.chain.len(), MAX_CHAIN, "certificates")?;
        self.chain
            .iter()
            .try_for_each(|der| within("a certificate", der.len(), MAX_CERTIFICATE))
    }
}

pub(crate) fn within(
    field: &'static str,
    length: usize,
    limit: usize,
) -> Result<(), EvidenceError> {
    count(field, length, limit, "bytes")
}

pub(crate) fn count(
    field: &'static str,
    length: usize,
    limit: usize,
    unit: &'static str,
) -> Result<(), EvidenceError> {
    if length <= limit {
        return Ok(());
    }
    Err(EvidenceError::FieldTooLong {
        field,
        length,
        limit,
        unit,
    })
}

pub(crate) fn encoded<T: Encode<()>>(value: &T) -> Vec<u8> {
    match minicbor::to_vec(value) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

pub(crate) fn decoded<'b, T: Decode<'b, ()> + Encode<()>>(
    bytes: &'b [u8],
    limit: usize,
) -> Result<T, EvidenceError> {
    if bytes.len() > limit {
        return Err(EvidenceError::TooLong {
            length: bytes.len(),
            limit,
        });
    }
    if !has_definite_lengths(bytes) {
        return Err(EvidenceError::NotDeterministic);
    }
    let value: T = minicbor::decode(bytes).map_err(EvidenceError::Cbor)?;
    if encoded(&value) == bytes {
        Ok(value)
    } else {
        Err(EvidenceError::NotDeterministic)
    }
}
