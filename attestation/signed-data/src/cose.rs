//! The COSE_Sign1 (RFC 9052 §4.2), in the one form that ours have.

use std::io::{self, Read};

use attestation::bounded_cbor::has_definite_lengths;
use cert_chain::Digest32;
use minicbor::data::Tag;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};
use ring::digest::{Context as Hash, SHA256};

use crate::credentials::{Credentials, MAX_CREDENTIALS};
use crate::label::{Form, Label, digest};

/// Signed data as they travel. Nothing about them is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedData {
    pub(crate) label: Label,
    pub(crate) content: Content,
    pub(crate) credentials: Credentials,
    pub(crate) signature: [u8; SIGNATURE],
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The data, which travel with the signature: at most [`MAX_ATTACHED`] bytes.
    Attached(Vec<u8>),
    /// The SHA-256 value of data that are elsewhere.
    Hash(Digest32),
}

/// What stands for data of any length in a [`Content::Hash`]: their SHA-256 value.
pub fn hash_of_data(data: &mut impl Read) -> io::Result<Digest32> {
    let mut hash = Hash::new(&SHA256);
    let mut piece = vec![0; 64 * 1024];
    loop {
        match data.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => hash.update(piece.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let value = <[u8; 32]>::try_from(hash.finish().as_ref());
    value.map(Digest32::new).map_err(io::Error::other)
}

/// A label and what it labels, to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToBeSigned {
    pub(crate) label: Label,
    pub(crate) content: Content,
}

/// Why bytes are no signed data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not what `signed-data.cddl` describes.
    #[error("these are no signed data: {0}")]
    Cbor(#[from] decode::Error),
    /// Not in the one form that they have.
    #[error("the signed data are not in deterministic CBOR, or bytes follow them")]
    NotDeterministic,
    /// More than there can be.
    #[error("{length} bytes are too many: {limit} is the most")]
    TooLong {
        /// Number of bytes given.
        length: usize,
        /// The most there may be.
        limit: usize,
    },
}

/// Two scalars (RFC 9053 §2.1).
pub(crate) const SIGNATURE: usize = 64;
/// The most data that travel with their signature. Of more, the SHA-256 value is signed.
pub const MAX_ATTACHED: usize = 1024 * 1024;
/// The most that signed data can have.
pub const MAX_SIGNED_DATA: usize = MAX_ATTACHED + MAX_CREDENTIALS + 2048;
const COSE_SIGN1: Tag = Tag::new(18);

impl Content {
    /// SHA-256 value of the data.
    pub fn digest(&self) -> Digest32 {
        match self {
            Self::Attached(data) => Digest32::of(data),
            Self::Hash(digest) => *digest,
        }
    }

    fn form(&self) -> Form {
        match self {
            Self::Attached(_) => Form::Attached,
            Self::Hash(_) => Form::HashEnvelope,
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            Self::Attached(data) => data,
            Self::Hash(digest) => digest.as_bytes(),
        }
    }
}

impl ToBeSigned {
    /// Labels data.
    pub fn new(label: Label, content: Content) -> Result<Self, FormatError> {
        within(content.payload().len(), MAX_ATTACHED)?;
        Ok(Self { label, content })
    }

    /// What the signature covers: the Sig_structure (RFC 9052 §4.4).
    pub fn message(&self) -> Vec<u8> {
        sig_structure(&self.label, &self.content)
    }

    /// Its SHA-256 value, which a TPM signs.
    pub fn digest(&self) -> Digest32 {
        Digest32::of(&self.message())
    }

    /// With the signature, as two scalars, and with what it takes to verify it.
    pub fn signed(self, signature: [u8; SIGNATURE], credentials: Credentials) -> SignedData {
        SignedData {
            label: self.label,
            content: self.content,
            credentials,
            signature,
        }
    }
}

impl SignedData {
    /// What they say about themselves, unverified.
    pub fn unverified_label(&self) -> &Label {
        &self.label
    }

    /// The data, or their SHA-256 value, unverified.
    pub fn unverified_content(&self) -> &Content {
        &self.content
    }

    /// The signature: two scalars (RFC 9053 §2.1).
    pub fn signature(&self) -> &[u8; SIGNATURE] {
        &self.signature
    }

    /// What travels beside the signature, unverified.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// As they travel.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|e| self.write(e))
    }

    /// Reads signed data.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, FormatError> {
        readable(bytes, MAX_SIGNED_DATA)?;
        let mut d = Decoder::new(bytes);
        let data = Self::read(&mut d)?;
        match data.to_cbor() == bytes {
            true => Ok(data),
            false => Err(FormatError::NotDeterministic),
        }
    }

    /// What the signature covers: the Sig_structure (RFC 9052 §4.4).
    pub fn message(&self) -> Vec<u8> {
        sig_structure(&self.label, &self.content)
    }

    pub(crate) fn write<W: Write>(
        &self,
        e: &mut Encoder<W>,
    ) -> Result<(), encode::Error<W::Error>> {
        let unsigned = (&self.label, &self.content);
        write_sign1(e, unsigned, Some(&self.credentials), &self.signature)
    }

    pub(crate) fn read(d: &mut Decoder<'_>) -> Result<Self, FormatError> {
        let (unsigned, credentials, signature) = read_sign1(d)?;
        let credentials =
            credentials.ok_or_else(|| decode::Error::message("the unprotected header is empty"))?;
        Ok(unsigned.signed(signature, credentials))
    }
}

/// A COSE_Sign1 whose credentials may be known from elsewhere: then the unprotected header is empty.
pub(crate) fn write_sign1<W: Write>(
    e: &mut Encoder<W>,
    (label, content): (&Label, &Content),
    credentials: Option<&Credentials>,
    signature: &[u8; SIGNATURE],
) -> Result<(), encode::Error<W::Error>> {
    e.tag(COSE_SIGN1)?.array(4)?;
    e.bytes(&label.to_protected(content.form()))?;
    match credentials {
        Some(credentials) => credentials.write(e)?,
        None => e.map(0)?.ok()?,
    }
    e.bytes(content.payload())?.bytes(signature)?.ok()
}

/// Reads what [`write_sign1`] wrote.
pub(crate) fn read_sign1(
    d: &mut Decoder<'_>,
) -> Result<(ToBeSigned, Option<Credentials>, [u8; SIGNATURE]), FormatError> {
    if d.tag()? != COSE_SIGN1 || d.array()? != Some(4) {
        return Err(decode::Error::message("they begin as no COSE_Sign1 with its tag").into());
    }
    let (label, form) = Label::from_protected(d.bytes()?)?;
    let credentials = match d.probe().map()? {
        Some(0) => {
            d.map()?;
            None
        }
        _ => Some(Credentials::read(d)?),
    };
    let payload = d.bytes()?;
    let content = match form {
        Form::Attached => {
            within(payload.len(), MAX_ATTACHED)?;
            Content::Attached(payload.to_vec())
        }
        Form::HashEnvelope => Content::Hash(digest(payload)?),
    };
    let signature = <[u8; SIGNATURE]>::try_from(d.bytes()?)
        .map_err(|_| decode::Error::message("the signature has not 64 bytes"))?;
    Ok((ToBeSigned { label, content }, credentials, signature))
}

fn sig_structure(label: &Label, content: &Content) -> Vec<u8> {
    encoded(|e| {
        e.array(4)?
            .str("Signature1")?
            .bytes(&label.to_protected(content.form()))?
            .bytes(&[])?
            .bytes(content.payload())?
            .ok()
    })
}

pub(crate) fn encoded(
    write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Result<(), encode::Error<std::convert::Infallible>>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    match write(&mut encoder) {
        Ok(()) => encoder.into_writer(),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}

/// What is no longer than it may be, and has no lengths that are not said.
pub(crate) fn readable(bytes: &[u8], limit: usize) -> Result<(), FormatError> {
    within(bytes.len(), limit)?;
    match has_definite_lengths(bytes) {
        true => Ok(()),
        false => Err(FormatError::NotDeterministic),
    }
}

pub(crate) fn within(length: usize, limit: usize) -> Result<(), FormatError> {
    match length <= limit {
        true => Ok(()),
        false => Err(FormatError::TooLong { length, limit }),
    }
}
