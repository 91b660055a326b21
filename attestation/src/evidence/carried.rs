//! Revocation lists that evidence carries, for verifiers that have no other way to get them.

use cert_chain::crl::MAX_CRL;
use minicbor::bytes::ByteVec;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};

use super::{EvidenceError, MANY, count};
use crate::bounded_cbor::at_most;

/// Revocation lists in DER. No list at all is an absent field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedCrls(Vec<ByteVec>);

/// More than one while an issuer is replaced by another one, or a party has several.
pub const MAX_CARRIED: usize = 4;

impl CarriedCrls {
    /// Takes lists in DER.
    pub fn new(lists: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(lists.into_iter().map(ByteVec::from).collect())
    }

    /// The lists.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|list| list.as_slice())
    }

    /// Whether evidence may carry so much.
    pub fn check_lengths(&self) -> Result<(), EvidenceError> {
        count(
            "the evidence",
            self.0.len(),
            MAX_CARRIED,
            "revocation lists",
        )?;
        let length = self.iter().map(<[u8]>::len).sum();
        count("all revocation lists", length, MAX_CRL, "bytes")
    }
}

impl<C> Encode<C> for CarriedCrls {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        self.0.encode(encoder, context)
    }

    fn is_nil(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'b, C> Decode<'b, C> for CarriedCrls {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, minicbor::decode::Error> {
        at_most::<MANY, _, _>(decoder, context).map(Self)
    }

    fn nil() -> Option<Self> {
        Some(Self::default())
    }
}
