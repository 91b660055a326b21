//! A time stamp over the signature of a COSE_Sign1, in its unprotected header (RFC 9921 §3.1: COSE, then
//! time stamp).

use attestation::bounded_cbor::has_definite_lengths;
use minicbor::data::Tag;
use minicbor::{Decoder, Encoder, decode};

use crate::hashing::{ArchiveHash, Imprint};
use crate::time_stamp::{TimeStampError, Token};

/// `3161-ctt`.
const CTT: u64 = 270;
const COSE_SIGN1: Tag = Tag::new(18);

/// A COSE_Sign1 as its signer left it, and the time stamp over its signature, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StampedSign1 {
    /// Without the time stamp.
    pub sign1: Vec<u8>,
    /// Not verified yet.
    pub token: Option<Token>,
}

/// Why a COSE_Sign1 cannot be stamped, or its time stamp not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StampedError {
    /// Not the form of a COSE_Sign1.
    #[error("this is no COSE_Sign1 with a tag: {0}")]
    Cbor(#[from] decode::Error),
    /// Its time stamp.
    #[error("the time stamp in the header of the COSE_Sign1 cannot be read")]
    Token(#[from] TimeStampError),
    /// Time stamps are not put one over the other here.
    #[error("the COSE_Sign1 has a time stamp already")]
    Stamped,
}

/// Where the parts of a COSE_Sign1 are.
struct Parts<'a> {
    /// With tag, array and protected header.
    before: &'a [u8],
    /// Number of entries of the unprotected header.
    entries: u64,
    /// The value of the time stamp's entry, which is the first.
    token: Option<&'a [u8]>,
    /// The other entries.
    others: &'a [u8],
    /// Payload and signature.
    behind: &'a [u8],
    /// The signature with the head of its byte string.
    signature: &'a [u8],
}

/// What the time stamp covers: the hash value of [the signature](stamped_bytes).
pub fn signature_imprint(sign1: &[u8], hash: ArchiveHash) -> Result<Imprint, StampedError> {
    Ok(hash.of(stamped_bytes(sign1)?))
}

/// The signature as it stands there, with the head of its byte string.
pub fn stamped_bytes(sign1: &[u8]) -> Result<&[u8], StampedError> {
    Ok(Parts::of(sign1)?.signature)
}

impl StampedSign1 {
    /// Takes the time stamp out.
    pub fn read(sign1: &[u8]) -> Result<Self, StampedError> {
        let parts = Parts::of(sign1)?;
        let Some(token) = parts.token else {
            return Ok(Self {
                sign1: sign1.to_vec(),
                token: None,
            });
        };
        Ok(Self {
            sign1: parts.with(parts.entries - 1, &[]),
            token: Some(Token::from_der(token)?),
        })
    }

    /// With the time stamp in its header.
    pub fn to_cbor(&self) -> Result<Vec<u8>, StampedError> {
        let parts = Parts::of(&self.sign1)?;
        let Some(token) = &self.token else {
            return Ok(self.sign1.clone());
        };
        if parts.token.is_some() {
            return Err(StampedError::Stamped);
        }
        let entry = written(|e| {
            e.u64(CTT)?.bytes(token.der())?;
            Ok(())
        });
        Ok(parts.with(parts.entries + 1, &entry))
    }
}

impl<'a> Parts<'a> {
    fn of(sign1: &'a [u8]) -> Result<Self, StampedError> {
        if !has_definite_lengths(sign1) {
            return Err(decode::Error::message("an item does not say its length").into());
        }
        let mut d = Decoder::new(sign1);
        if d.tag()? != COSE_SIGN1 || d.array()? != Some(4) {
            return Err(decode::Error::message("it begins otherwise").into());
        }
        d.bytes()?;
        let before = d.position();
        let entries = (d.map()?).ok_or_else(|| decode::Error::message("a map without length"))?;
        let (mut token, mut others) = (None, d.position());
        for index in 0..entries {
            match d.probe().u64() {
                // Of ours, it is the first in deterministic order.
                Ok(CTT) if index == 0 => {
                    d.u64()?;
                    token = Some(d.bytes()?);
                    others = d.position();
                }
                Ok(CTT) => {
                    return Err(
                        decode::Error::message("the time stamp is not the first entry").into(),
                    );
                }
                _ => {
                    d.skip()?;
                    d.skip()?;
                }
            }
        }
        let behind = d.position();
        d.skip()?;
        let signature = d.position();
        d.bytes()?;
        let part = |from: usize, to: usize| sign1.get(from..to).unwrap_or_default();
        if d.position() != sign1.len() {
            return Err(decode::Error::message("bytes follow it").into());
        }
        Ok(Self {
            before: part(0, before),
            entries,
            token,
            others: part(others, behind),
            behind: part(behind, sign1.len()),
            signature: part(signature, sign1.len()),
        })
    }

    fn with(&self, entries: u64, first: &[u8]) -> Vec<u8> {
        let map = written(|e| {
            e.map(entries)?;
            Ok(())
        });
        [self.before, &map, first, self.others, self.behind].concat()
    }
}

fn written(
    write: impl FnOnce(
        &mut Encoder<Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>>,
) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    match write(&mut encoder) {
        Ok(()) => encoder.into_writer(),
        Err(error) => unreachable!("a Vec takes every byte: {error}"),
    }
}
