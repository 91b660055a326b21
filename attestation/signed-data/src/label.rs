//! What is signed beside the data: the protected header.

use std::time::Duration;

use attestation::Nonce;
use attestation::nonce::NonceError;
use cert_chain::{Digest32, TpmName};
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};
use rustls_pki_types::UnixTime;

use crate::source::Source;
use crate::text::LabelText;

/// What the signature says about the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name of the key that signs.
    pub key: TpmName,
    /// Whose TPM has the key.
    pub source: Source,
    /// Which of the source's streams they belong to.
    pub stream: LabelText,
    /// Their number. A source's numbers only rise; all its streams share them.
    pub sequence: u64,
    /// When they were signed, by the source's clock, in seconds since 1970.
    pub time: u64,
    /// What they are: a media type.
    pub content_type: LabelText,
    /// The evidence that goes with them.
    pub evidence: Option<EvidenceReference>,
}

/// Evidence that goes with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceReference {
    /// SHA-256 value of the evidence.
    pub digest: Digest32,
    /// When it was asked for, by the source's clock, in seconds since 1970.
    pub taken: u64,
}

/// How the payload stands in the COSE_Sign1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Attached,
    /// Its SHA-256 value stands for it.
    HashEnvelope,
}

/// Header parameters (IANA, "COSE Header Parameters"): RFC 9052 §3.1, RFC 9597, RFC 9995.
mod header {
    pub(super) const ALG: i64 = 1;
    pub(super) const CONTENT_TYPE: i64 = 3;
    pub(super) const KID: i64 = 4;
    pub(super) const CWT_CLAIMS: i64 = 15;
    pub(super) const PAYLOAD_HASH_ALG: i64 = 258;
    pub(super) const PREIMAGE_CONTENT_TYPE: i64 = 259;
}

/// Claims: RFC 8392 §4, and ours in the range for private use.
mod claim {
    pub(super) const ISS: i64 = 1;
    pub(super) const SUB: i64 = 2;
    pub(super) const IAT: i64 = 6;
    pub(super) const SEQUENCE: i64 = -70_001;
    pub(super) const EVIDENCE: i64 = -70_002;
}

/// ECDSA with SHA-256 (RFC 9053 §2.1).
const ES256: i64 = -7;
/// SHA-256 (RFC 9054 §2.1).
const SHA_256: i64 = -16;

impl Label {
    /// The time.
    pub fn signed_at(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.time))
    }

    /// The protected header: a map in deterministic CBOR (RFC 8949 §4.2.1).
    pub(crate) fn to_protected(&self, form: Form) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        match self.write(form, &mut encoder) {
            Ok(()) => encoder.into_writer(),
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    fn write<W: Write>(
        &self,
        form: Form,
        e: &mut Encoder<W>,
    ) -> Result<(), encode::Error<W::Error>> {
        e.map(if form == Form::Attached { 4 } else { 5 })?;
        e.i64(header::ALG)?.i64(ES256)?;
        if form == Form::Attached {
            e.i64(header::CONTENT_TYPE)?
                .str(self.content_type.as_str())?;
        }
        e.i64(header::KID)?.bytes(self.key.as_bytes())?;
        e.i64(header::CWT_CLAIMS)?;
        e.map(if self.evidence.is_some() { 5 } else { 4 })?;
        e.i64(claim::ISS)?.str(&self.source.to_string())?;
        e.i64(claim::SUB)?.str(self.stream.as_str())?;
        e.i64(claim::IAT)?.u64(self.time)?;
        e.i64(claim::SEQUENCE)?.u64(self.sequence)?;
        if let Some(evidence) = &self.evidence {
            e.i64(claim::EVIDENCE)?.array(2)?;
            e.bytes(evidence.digest.as_bytes())?.u64(evidence.taken)?;
        }
        if form == Form::HashEnvelope {
            e.i64(header::PAYLOAD_HASH_ALG)?.i64(SHA_256)?;
            e.i64(header::PREIMAGE_CONTENT_TYPE)?;
            e.str(self.content_type.as_str())?;
        }
        Ok(())
    }

    /// Reads a protected header of the one form that it has.
    pub(crate) fn from_protected(bytes: &[u8]) -> Result<(Self, Form), decode::Error> {
        let mut d = Decoder::new(bytes);
        let form = match d.map()? {
            Some(4) => Form::Attached,
            Some(5) => Form::HashEnvelope,
            _ => {
                return Err(decode::Error::message(
                    "the protected header has other parameters",
                ));
            }
        };
        number(&mut d, header::ALG)?;
        number(&mut d, ES256)?;
        let attached = match form {
            Form::Attached => {
                number(&mut d, header::CONTENT_TYPE)?;
                Some(text(&mut d)?)
            }
            Form::HashEnvelope => None,
        };
        number(&mut d, header::KID)?;
        let key = TpmName::from_bytes(d.bytes()?).map_err(decode::Error::custom)?;
        number(&mut d, header::CWT_CLAIMS)?;
        let claims = d.map()?;
        number(&mut d, claim::ISS)?;
        let source = d.str()?.parse().map_err(decode::Error::custom)?;
        number(&mut d, claim::SUB)?;
        let stream = text(&mut d)?;
        number(&mut d, claim::IAT)?;
        let time = d.u64()?;
        number(&mut d, claim::SEQUENCE)?;
        let sequence = d.u64()?;
        let evidence = match claims {
            Some(4) => None,
            Some(5) => Some(reference(&mut d)?),
            _ => return Err(decode::Error::message("there are other claims")),
        };
        let content_type = match attached {
            Some(content_type) => content_type,
            None => {
                number(&mut d, header::PAYLOAD_HASH_ALG)?;
                number(&mut d, SHA_256)?;
                number(&mut d, header::PREIMAGE_CONTENT_TYPE)?;
                text(&mut d)?
            }
        };
        let label = Self {
            key,
            source,
            stream,
            sequence,
            time,
            content_type,
            evidence,
        };
        // In the one form that it has, and with nothing behind it.
        match label.to_protected(form) == bytes {
            true => Ok((label, form)),
            false => Err(decode::Error::message(
                "the protected header is not deterministic",
            )),
        }
    }
}

/// The challenge that evidence for data answers: of the key, the number and the data, so that no evidence
/// that was taken before serves for them.
pub fn evidence_nonce(key: &TpmName, sequence: u64, data: &Digest32) -> Result<Nonce, NonceError> {
    const DOMAIN: &[u8] = b"vrot signed data evidence v1\0";
    let message = [
        DOMAIN,
        &sequence.to_be_bytes(),
        data.as_bytes(),
        key.as_bytes(),
    ];
    Nonce::new(*Digest32::of(&message.concat()).as_bytes())
}

fn reference(d: &mut Decoder<'_>) -> Result<EvidenceReference, decode::Error> {
    number(d, claim::EVIDENCE)?;
    if d.array()? != Some(2) {
        return Err(decode::Error::message(
            "evidence is told by its digest and time",
        ));
    }
    Ok(EvidenceReference {
        digest: digest(d.bytes()?)?,
        taken: d.u64()?,
    })
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest32, decode::Error> {
    let digest = <[u8; 32]>::try_from(bytes);
    (digest.map(Digest32::new)).map_err(|_| decode::Error::message("a SHA-256 value has 32 bytes"))
}

fn text(d: &mut Decoder<'_>) -> Result<LabelText, decode::Error> {
    d.str()?.parse().map_err(decode::Error::custom)
}

pub(crate) fn number(d: &mut Decoder<'_>, expected: i64) -> Result<(), decode::Error> {
    let at = d.position();
    match d.i64()? {
        found if found == expected => Ok(()),
        found => {
            let told = format!("{found} stands where {expected} is expected");
            Err(decode::Error::message(told).at(at))
        }
    }
}
