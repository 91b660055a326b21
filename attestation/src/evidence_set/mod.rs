//! Evidence of many VMs of one host, for their tenant: the host had their vRoTs quote, without the
//! guests, and quoted its own PCRs over all of them with one signature. `evidence-set` in
//! `evidence.cddl`.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the object as it travels: bounded and strict, as [evidence](crate::evidence) of one VM |
//! | `verification.rs` | the host once, then each VM |
//! | `appraisal.rs` | likewise against a policy |

mod appraisal;
mod verification;

use std::fmt;

use cert_chain::crl::MAX_CRL;
use cert_chain::{Digest32, VmId};
use minicbor::bytes::ByteVec;
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode};

use crate::bounded_cbor::at_most;
use crate::event_log::MAX_LOG;
use crate::evidence::{
    CarriedCrls, EvidenceError, MAX_CERTIFICATE, MAX_PCR_VALUES, MAX_STRUCTURE, count, decoded,
    encoded, within,
};
use crate::host_leaf::{HostLeaf, MAX_LEAF, QuotePurpose};
use crate::merkle::MAX_PATH;
use crate::nonce::Nonce;

pub use appraisal::{SetResult, VmOutcome, appraise_set};
pub use verification::{VerifiedSet, VmRefusal};

/// Everything a verifier needs about VMs of one host, for one challenge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct EvidenceSet {
    /// Version of the format.
    #[n(0)]
    version: u8,
    /// The challenge that all quotes answer.
    #[n(1)]
    pub nonce: Nonce,
    /// The host's part.
    #[n(2)]
    pub host: SetHost,
    /// The VMs, in no order that means anything.
    #[n(3)]
    #[cbor(decode_with = "at_most::<MOST_VMS, _, _>")]
    pub vms: Vec<SetVm>,
    /// The VMs that could not be quoted. Nobody signs this: it tells whoever asked what to look at.
    #[n(4)]
    #[cbor(decode_with = "at_most::<MOST_VMS, _, _>")]
    pub unquoted: Vec<Unquoted>,
    /// Revocation lists, each of which its issuer signed.
    #[n(5)]
    pub crls: CarriedCrls,
}

/// The host's quote over the tree of its statements.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SetHost {
    /// `TPMS_ATTEST` of the quote.
    #[n(1)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the host IK.
    #[n(2)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of the host IK.
    #[n(3)]
    pub host_ik_public: ByteVec,
    /// The host IK's certificate in DER.
    #[n(4)]
    pub certificate: ByteVec,
    /// SHA-256 value of the event log.
    #[n(5)]
    pub event_log_digest: Digest32,
    /// The host's event log.
    #[n(6)]
    pub event_log: ByteVec,
    /// Root of the tree of statements.
    #[n(7)]
    pub root: Digest32,
    /// Number of its leaves. There may be more than VMs in the set.
    #[n(8)]
    pub tree_size: u64,
    /// The values of the quoted PCRs in rising order.
    #[n(9)]
    pub pcr_values: ByteVec,
}

/// One VM: its vRoT's quote, and the host's statement about it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SetVm {
    /// `TPMS_ATTEST` of the quote.
    #[n(1)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the vIK.
    #[n(2)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of the vIK.
    #[n(3)]
    pub vik_public: ByteVec,
    /// The vIK's certificate in DER.
    #[n(4)]
    pub certificate: ByteVec,
    /// The values of the quoted PCRs in rising order.
    #[n(5)]
    pub pcr_values: ByteVec,
    /// The statement: an encoded [`HostLeaf`].
    #[n(6)]
    pub leaf: ByteVec,
    /// Its number in the tree, from zero.
    #[n(7)]
    pub index: u64,
    /// Siblings on the way from it to the root, nearest first.
    #[n(8)]
    pub path: Vec<Digest32>,
}

/// A VM that could not be quoted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Unquoted {
    /// The VM.
    #[n(1)]
    pub vm: VmId,
    /// Why, for people: up to [`MAX_REASON`] bytes.
    #[n(2)]
    pub reason: String,
}

/// As many VMs as one host can be asked for at a time.
pub const MAX_VMS: usize = 4096;
const MOST_VMS: u64 = MAX_VMS as u64;
/// Bytes of a reason.
pub const MAX_REASON: usize = 512;
/// A log and revocation lists of the largest size, and 8 KiB for each VM: one has about 2.5 KiB.
pub const MAX_EVIDENCE_SET: usize = MAX_LOG + MAX_CRL + MAX_VMS * 8 * 1024;
const VERSION: u8 = 1;

impl EvidenceSet {
    /// A set in the present version of the format.
    pub fn new(nonce: Nonce, host: SetHost, vms: Vec<SetVm>, unquoted: Vec<Unquoted>) -> Self {
        Self {
            version: VERSION,
            nonce,
            host,
            vms,
            unquoted,
            crls: CarriedCrls::default(),
        }
    }

    /// The same with revocation lists.
    #[must_use]
    pub fn carrying(self, crls: CarriedCrls) -> Self {
        Self { crls, ..self }
    }

    /// The set as it travels.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads a set. Nothing about it is verified yet.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let set: Self = decoded(bytes, MAX_EVIDENCE_SET)?;
        if set.version != VERSION {
            return Err(EvidenceError::Version {
                found: set.version,
                known: VERSION,
            });
        }
        set.host.check_lengths()?;
        set.vms.iter().try_for_each(SetVm::check_lengths)?;
        for unquoted in &set.unquoted {
            within("a reason", unquoted.reason.len(), MAX_REASON)?;
        }
        set.crls.check_lengths()?;
        Ok(set)
    }
}

impl SetHost {
    fn check_lengths(&self) -> Result<(), EvidenceError> {
        within("the host's quote", self.attest.len(), MAX_STRUCTURE)?;
        within("the host's signature", self.signature.len(), MAX_STRUCTURE)?;
        within("the host IK", self.host_ik_public.len(), MAX_STRUCTURE)?;
        within("a certificate", self.certificate.len(), MAX_CERTIFICATE)?;
        within("the host's event log", self.event_log.len(), MAX_LOG)?;
        within("the host's PCRs", self.pcr_values.len(), MAX_PCR_VALUES)
    }
}

impl SetVm {
    /// Which VM it is said to be.
    pub fn said_vm(&self) -> Option<VmId> {
        HostLeaf::decode(&self.leaf).map(|leaf| leaf.vm)
    }

    fn check_lengths(&self) -> Result<(), EvidenceError> {
        within("a VM's quote", self.attest.len(), MAX_STRUCTURE)?;
        within("a VM's signature", self.signature.len(), MAX_STRUCTURE)?;
        within("a vIK", self.vik_public.len(), MAX_STRUCTURE)?;
        within("a certificate", self.certificate.len(), MAX_CERTIFICATE)?;
        within("a VM's PCRs", self.pcr_values.len(), MAX_PCR_VALUES)?;
        within("the host's leaf", self.leaf.len(), MAX_LEAF)?;
        count("the path", self.path.len(), MAX_PATH, "siblings")
    }
}

impl fmt::Display for Unquoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {} could not be quoted: {}", self.vm, self.reason)
    }
}

/// What these bytes are for, going by their form alone; none, if they are no evidence of VMs.
pub fn said_purpose(bytes: &[u8]) -> Option<QuotePurpose> {
    let mut decoder = Decoder::new(bytes);
    decoder.map().ok()?;
    if decoder.u8().ok()? != 0 {
        return None;
    }
    decoder.u8().ok()?;
    if decoder.u8().ok()? != 1 {
        return None;
    }
    match decoder.datatype().ok()? {
        Type::Map => Some(QuotePurpose::Service),
        Type::Bytes => Some(QuotePurpose::Tenant),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// Tenants of other builds read sets like this one, byte for byte.
    #[test]
    fn the_encoding_stays_as_it_is() {
        let digest = |byte| Digest32::new([byte; 32]);
        let bytes = |byte| ByteVec::from(vec![byte; 3]);
        let host = SetHost {
            attest: bytes(1),
            signature: bytes(2),
            host_ik_public: bytes(3),
            certificate: bytes(4),
            event_log_digest: digest(5),
            event_log: bytes(6),
            root: digest(7),
            tree_size: 8,
            pcr_values: bytes(9),
        };
        let vm = SetVm {
            attest: bytes(10),
            signature: bytes(11),
            vik_public: bytes(12),
            certificate: bytes(13),
            pcr_values: bytes(14),
            leaf: bytes(15),
            index: 16,
            path: vec![digest(17)],
        };
        let unquoted = Unquoted {
            vm: "02020202-0202-4202-8202-020202020202".parse().unwrap(),
            reason: "its TPM is off".to_owned(),
        };
        let nonce = Nonce::new([0xa5; 32]).unwrap();
        let set = EvidenceSet::new(nonce, host, vec![vm], vec![unquoted]);
        let golden = include_str!("evidence_set_v1.hex").trim();
        assert_eq!(hex::encode(set.to_cbor()), golden);
        assert_eq!(EvidenceSet::from_cbor(&set.to_cbor()).unwrap(), set);
    }
}
