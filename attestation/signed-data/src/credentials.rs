//! What travels beside the signature, so that it can be verified.

use attestation::KeyStatement;
use attestation::device::MAX_DEVICE_EVIDENCE;
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
    /// The certificates of the source's identity key.
    pub certificates: Certificates,
    /// `TPMT_PUBLIC` of that key: the vIK, or the device's identity key.
    pub identity_key: ByteVec,
    /// What that key says about the key that signs.
    pub statement: KeyStatement,
    /// The evidence (`evidence.cddl`) that the label refers to.
    pub evidence: Option<ByteVec>,
}

/// Certificates of an identity key, without the issuer's root, in DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// A VM's: the vIK's, which the host made, and the host's.
    Vm([ByteVec; 2]),
    /// A device's, which the issuer made itself.
    Device(ByteVec),
}

/// Header parameters of the unprotected header, in the range for private use.
mod header {
    pub(super) const CERTIFICATES: i64 = -70_001;
    pub(super) const IDENTITY_KEY: i64 = -70_002;
    pub(super) const STATEMENT: i64 = -70_003;
    pub(super) const EVIDENCE: i64 = -70_004;
}

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
        e.i64(header::CERTIFICATES)?;
        match &self.certificates {
            Certificates::Vm(chain) => e.encode(chain)?,
            Certificates::Device(own) => e.array(1)?.encode(own)?,
        };
        e.i64(header::IDENTITY_KEY)?.encode(&self.identity_key)?;
        e.i64(header::STATEMENT)?.encode(&self.statement)?;
        if let Some(evidence) = &self.evidence {
            e.i64(header::EVIDENCE)?.encode(evidence)?;
        }
        Ok(())
    }

    pub(crate) fn read(d: &mut Decoder<'_>) -> Result<Self, decode::Error> {
        let parameters = d.map()?;
        number(d, header::CERTIFICATES)?;
        let certificates = match d.array()? {
            Some(1) => Certificates::Device(bytes(d, MAX_CERTIFICATE)?),
            Some(2) => Certificates::Vm([bytes(d, MAX_CERTIFICATE)?, bytes(d, MAX_CERTIFICATE)?]),
            _ => {
                return Err(decode::Error::message(
                    "a VM has two certificates, and a device one",
                ));
            }
        };
        number(d, header::IDENTITY_KEY)?;
        let identity_key = bytes(d, MAX_STRUCTURE)?;
        number(d, header::STATEMENT)?;
        let statement: KeyStatement = d.decode()?;
        for part in [&statement.public, &statement.attest, &statement.signature] {
            bounded(part, MAX_STRUCTURE)?;
        }
        let evidence = match parameters {
            Some(3) => None,
            Some(4) => {
                number(d, header::EVIDENCE)?;
                Some(bytes(d, certificates.most_evidence())?)
            }
            _ => {
                return Err(decode::Error::message(
                    "the unprotected header has other parameters",
                ));
            }
        };
        Ok(Self {
            certificates,
            identity_key,
            statement,
            evidence,
        })
    }
}

impl Certificates {
    /// The most bytes that evidence of such a source has.
    fn most_evidence(&self) -> usize {
        match self {
            Self::Vm(_) => MAX_EVIDENCE,
            Self::Device(_) => MAX_DEVICE_EVIDENCE,
        }
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
