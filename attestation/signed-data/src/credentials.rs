//! What travels beside the signature, so that it can be verified.

use attestation::DataKeyStatement;
use attestation::evidence::MAX_EVIDENCE;
use minicbor::bytes::ByteVec;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};

use crate::label::number;

/// The way from the issuer's root to the key that signed, and the evidence. None of it is covered by the
/// signature and none needs to be: each part proves itself against the next, up to the name of the key and
/// the digest of the evidence in the label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Certificates of the vIK and of the host IK, in this order, in DER.
    pub chain: Vec<ByteVec>,
    /// `TPMT_PUBLIC` of the vIK.
    pub vik_public: ByteVec,
    /// What the vIK says about the key that signs.
    pub statement: DataKeyStatement,
    /// The evidence (`evidence.cddl`) that the label refers to.
    pub evidence: Option<ByteVec>,
}

/// Header parameters of the unprotected header, in the range for private use.
mod header {
    pub(super) const CHAIN: i64 = -70_001;
    pub(super) const VIK: i64 = -70_002;
    pub(super) const STATEMENT: i64 = -70_003;
    pub(super) const EVIDENCE: i64 = -70_004;
}

/// Certificates of the vIK and its host.
const CERTIFICATES: u64 = 2;
const MAX_CERTIFICATE: usize = 4096;
const MAX_STRUCTURE: usize = 2048;
/// All but the evidence.
pub(crate) const MAX_CREDENTIALS: usize =
    MAX_EVIDENCE + 2 * MAX_CERTIFICATE + 4 * MAX_STRUCTURE + 256;

impl Credentials {
    pub(crate) fn write<W: Write>(
        &self,
        e: &mut Encoder<W>,
    ) -> Result<(), encode::Error<W::Error>> {
        e.map(if self.evidence.is_some() { 4 } else { 3 })?;
        e.i64(header::CHAIN)?.encode(&self.chain)?;
        e.i64(header::VIK)?.encode(&self.vik_public)?;
        e.i64(header::STATEMENT)?.encode(&self.statement)?;
        if let Some(evidence) = &self.evidence {
            e.i64(header::EVIDENCE)?.encode(evidence)?;
        }
        Ok(())
    }

    pub(crate) fn read(d: &mut Decoder<'_>) -> Result<Self, decode::Error> {
        let parameters = d.map()?;
        number(d, header::CHAIN)?;
        if d.array()? != Some(CERTIFICATES) {
            return Err(decode::Error::message("a chain has two certificates"));
        }
        let vik = bytes(d, MAX_CERTIFICATE)?;
        let host = bytes(d, MAX_CERTIFICATE)?;
        number(d, header::VIK)?;
        let vik_public = bytes(d, MAX_STRUCTURE)?;
        number(d, header::STATEMENT)?;
        let statement: DataKeyStatement = d.decode()?;
        for part in [&statement.public, &statement.attest, &statement.signature] {
            bounded(part, MAX_STRUCTURE)?;
        }
        let evidence = match parameters {
            Some(3) => None,
            Some(4) => {
                number(d, header::EVIDENCE)?;
                Some(bytes(d, MAX_EVIDENCE)?)
            }
            _ => {
                return Err(decode::Error::message(
                    "the unprotected header has other parameters",
                ));
            }
        };
        Ok(Self {
            chain: vec![vik, host],
            vik_public,
            statement,
            evidence,
        })
    }
}

fn bytes(d: &mut Decoder<'_>, limit: usize) -> Result<ByteVec, decode::Error> {
    let bytes = d.bytes()?;
    bounded(bytes, limit)?;
    Ok(bytes.to_vec().into())
}

fn bounded(bytes: &[u8], limit: usize) -> Result<(), decode::Error> {
    match bytes.len() <= limit {
        true => Ok(()),
        false => Err(decode::Error::message(format!(
            "a part has {} bytes, more than the {limit} allowed",
            bytes.len()
        ))),
    }
}
