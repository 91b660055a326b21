//! The signed statement: a COSE_Sign1 (RFC 9052 §4.2) over what was shown, with what its key is known by.
//! `confirmation.cddl` has its form.

use std::fmt;
use std::str::FromStr;

use attestation::{KeyStatement, Nonce};
use cert_chain::Digest32;
use minicbor::bytes::{ByteSlice, ByteVec};
use minicbor::data::Tag;
use minicbor::{Decode, Encode, Encoder};

use crate::rendering::Rendering;

/// Who asks: a host name, an origin or a SPIFFE id, in 1 to 120 printable ASCII characters without blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName(String);

/// A name that cannot be shown on one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a service's name has 1 to 120 printable ASCII characters and no blanks: shop.example, say"
)]
pub struct ServiceRefused;

/// What was shown to a person who confirmed it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Shown {
    #[n(1)]
    domain: String,
    #[n(2)]
    pub(crate) service: String,
    #[n(3)]
    pub(crate) nonce: Nonce,
    /// The lines as shown.
    #[n(4)]
    pub(crate) lines: Vec<String>,
    #[n(5)]
    pub(crate) columns: u16,
    #[n(6)]
    pub(crate) rows: u16,
    /// Seconds since 1970 by the device's clock.
    #[n(7)]
    pub(crate) time: u64,
    #[n(8)]
    answer: String,
}

/// A statement with what is needed to verify it. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Confirmation {
    /// COSE_Sign1 over [`Shown`].
    #[n(1)]
    pub signed: ByteVec,
    /// What the device's TPM says about the key.
    #[n(2)]
    pub key: KeyStatement,
    /// `TPMT_PUBLIC` of the device's identity key.
    #[n(3)]
    pub identity_key: ByteVec,
    /// The device's certificate.
    #[n(4)]
    pub certificate: ByteVec,
}

/// A COSE_Sign1 taken apart.
pub(crate) struct Envelope {
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

const DOMAIN: &str = "vrot confirmation v1";
const CONFIRMED: &str = "confirmed";
const CONTENT_TYPE: &str = "application/vrot-confirmation+cbor";
/// `COSE_Sign1` (RFC 9052 §2).
const COSE_SIGN1: Tag = Tag::new(18);
/// ES256 (RFC 9053 §2.1).
const ES256: i8 = -7;

/// Longer than any: a text takes at most four bytes for each character, and lines a few more.
pub const MAX_CONFIRMATION: usize = 64 * 1024;

type EncodeResult = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

impl Shown {
    /// What the person saw, at this time.
    pub fn new(service: &ServiceName, nonce: &Nonce, rendering: &Rendering, time: u64) -> Self {
        Self {
            domain: DOMAIN.to_owned(),
            service: service.0.clone(),
            nonce: nonce.clone(),
            lines: rendering.lines().to_vec(),
            columns: rendering.size().columns(),
            rows: rendering.size().rows(),
            time,
            answer: CONFIRMED.to_owned(),
        }
    }

    /// SHA-256 of what the key signs: `Sig_structure` (RFC 9052 §4.4).
    pub fn to_be_signed(&self) -> Digest32 {
        to_be_signed(&self.payload())
    }

    /// The COSE_Sign1 with this signature: two scalars of 32 bytes.
    pub fn signed(&self, signature: &[u8; 64]) -> Vec<u8> {
        envelope(&self.payload(), signature)
    }

    fn payload(&self) -> Vec<u8> {
        encoded(|encoder| encoder.encode(self)?.ok())
    }

    /// Reads what was signed; `None` if it is something else, or not in the one form that it has.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let shown: Self = minicbor::decode(payload).ok()?;
        let is_ours = shown.domain == DOMAIN && shown.answer == CONFIRMED;
        (is_ours && shown.payload() == payload).then_some(shown)
    }
}

impl Confirmation {
    /// As CBOR.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|encoder| encoder.encode(self)?.ok())
    }

    /// Reads one; `None` if it is none, or not in the one form that it has.
    pub(crate) fn from_cbor(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_CONFIRMATION {
            return None;
        }
        let read: Self = minicbor::decode(bytes).ok()?;
        (read.to_cbor() == bytes).then_some(read)
    }
}

impl Envelope {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut decoder = minicbor::Decoder::new(bytes);
        (decoder.tag().ok()? == COSE_SIGN1).then_some(())?;
        (decoder.array().ok()? == Some(4)).then_some(())?;
        (decoder.bytes().ok()? == protected()).then_some(())?;
        (decoder.map().ok()? == Some(0)).then_some(())?;
        let payload = decoder.bytes().ok()?.to_vec();
        let signature: [u8; 64] = decoder.bytes().ok()?.try_into().ok()?;
        let read = Self {
            payload,
            signature: signature.to_vec(),
        };
        (envelope(&read.payload, &signature) == bytes).then_some(read)
    }

    /// What the signature is over.
    pub(crate) fn sig_structure(&self) -> Vec<u8> {
        sig_structure(&self.payload)
    }
}

fn protected() -> Vec<u8> {
    encoded(|encoder| {
        encoder.map(2)?.u8(1)?.i8(ES256)?;
        encoder.u8(3)?.str(CONTENT_TYPE)?.ok()
    })
}

fn envelope(payload: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    encoded(|encoder| {
        encoder.tag(COSE_SIGN1)?.array(4)?.bytes(&protected())?;
        encoder.map(0)?.bytes(payload)?.bytes(signature)?.ok()
    })
}

fn sig_structure(payload: &[u8]) -> Vec<u8> {
    encoded(|encoder| {
        encoder.array(4)?.str("Signature1")?.bytes(&protected())?;
        encoder
            .encode(<&ByteSlice>::from(&[][..]))?
            .bytes(payload)?
            .ok()
    })
}

fn to_be_signed(payload: &[u8]) -> Digest32 {
    Digest32::of(&sig_structure(payload))
}

fn encoded(write: impl FnOnce(&mut Encoder<Vec<u8>>) -> EncodeResult) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    match write(&mut encoder) {
        Ok(()) => encoder.into_writer(),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

impl ServiceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceRefused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=120).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(ServiceRefused),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
