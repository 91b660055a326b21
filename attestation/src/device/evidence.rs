//! A device's evidence as it travels: `device-evidence` in `evidence.cddl`. Bounded and strict, as a
//! VM's.

use cert_chain::Digest32;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::binding::Binding;
use crate::event_log::MAX_LOG;
use crate::evidence::{
    EvidenceError, MAX_CERTIFICATE, MAX_PCR_VALUES, MAX_STRUCTURE, decoded, encoded, within,
};
use crate::nonce::Nonce;

/// Everything a verifier needs about one device, for one challenge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeviceEvidence {
    /// Version of the format.
    #[n(0)]
    version: u8,
    /// The quote, and what goes with it.
    #[n(1)]
    pub quote: DeviceQuote,
}

/// A quote by a device's identity key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeviceQuote {
    /// The challenge that the quote answers.
    #[n(1)]
    pub nonce: Nonce,
    /// What the evidence is for.
    #[n(2)]
    pub binding: Binding,
    /// `TPMS_ATTEST` of the quote.
    #[n(3)]
    pub attest: ByteVec,
    /// `TPMT_SIGNATURE` by the device's identity key.
    #[n(4)]
    pub signature: ByteVec,
    /// `TPMT_PUBLIC` of that key.
    #[n(5)]
    pub ik_public: ByteVec,
    /// SHA-256 value of the event log.
    #[n(6)]
    pub event_log_digest: Digest32,
    /// The device's event log.
    #[n(7)]
    pub event_log: ByteVec,
    /// The identity key's certificate in DER.
    #[n(8)]
    pub certificate: ByteVec,
    /// The values of the quoted PCRs in rising order: what the quote's digest is of.
    #[n(9)]
    pub pcr_values: ByteVec,
}

/// A log of the largest size, and the rest.
pub const MAX_DEVICE_EVIDENCE: usize = MAX_LOG + 64 * 1024;
const VERSION: u8 = 1;

impl DeviceEvidence {
    /// Evidence in the present version of the format.
    pub fn new(quote: DeviceQuote) -> Self {
        Self {
            version: VERSION,
            quote,
        }
    }

    /// The evidence as it travels.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(self)
    }

    /// Reads evidence. Nothing about it is verified yet.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let evidence: Self = decoded(bytes, MAX_DEVICE_EVIDENCE)?;
        if evidence.version != VERSION {
            return Err(EvidenceError::Version {
                found: evidence.version,
                known: VERSION,
            });
        }
        let quote = &evidence.quote;
        within("the device's quote", quote.attest.len(), MAX_STRUCTURE)?;
        within(
            "the device's signature",
            quote.signature.len(),
            MAX_STRUCTURE,
        )?;
        within("the device's key", quote.ik_public.len(), MAX_STRUCTURE)?;
        within("the device's event log", quote.event_log.len(), MAX_LOG)?;
        within("the device's PCRs", quote.pcr_values.len(), MAX_PCR_VALUES)?;
        within("a certificate", quote.certificate.len(), MAX_CERTIFICATE)?;
        Ok(evidence)
    }
}
