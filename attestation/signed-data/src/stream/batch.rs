//! A batch as it travels.

use cert_chain::{Digest32, PublicArea};
use minicbor::{Decoder, decode};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::cose::{
    Content, FormatError, MAX_ATTACHED, SIGNATURE, ToBeSigned, encoded, read_sign1, readable,
    write_sign1,
};
use crate::credentials::{Credentials, MAX_CREDENTIALS};
use crate::label::Label;
use crate::stream::reading::{MAX_READINGS, MAX_READINGS_BYTES, ProvenReading, Readings};
use crate::stream::statement::{BATCH_TYPE, BatchStatement, Link};

/// A batch of a stream. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub(super) unsigned: UnsignedBatch,
    /// Left out if they are those of the batch before.
    pub(super) credentials: Option<Credentials>,
    pub(super) signature: [u8; SIGNATURE],
}

/// A batch to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedBatch {
    pub(super) to_be_signed: ToBeSigned,
    pub(super) statement: BatchStatement,
    pub(super) readings: Readings,
}

/// The most that a batch has.
pub const MAX_BATCH: usize =
    MAX_READINGS_BYTES + MAX_READINGS_USIZE * READING_HEADERS + MAX_CREDENTIALS + 4096;
#[expect(clippy::cast_possible_truncation, reason = "65,536")]
const MAX_READINGS_USIZE: usize = MAX_READINGS as usize;
/// Of an array of two, an index of three bytes and the length of a reading.
const READING_HEADERS: usize = 16;

impl UnsignedBatch {
    /// A batch with this label, whose content type is [`BATCH_TYPE`] whatever it says.
    pub fn new(
        mut label: Label,
        statement: BatchStatement,
        readings: Readings,
    ) -> Result<Self, FormatError> {
        label.content_type = BATCH_TYPE.parse().map_err(decode::Error::custom)?;
        let content = Content::Attached(statement.to_cbor());
        Ok(Self {
            to_be_signed: ToBeSigned::new(label, content)?,
            statement,
            readings,
        })
    }

    /// What is signed of it: a statement.
    pub fn statement(&self) -> &BatchStatement {
        &self.statement
    }

    /// The payload of the signature: the statement as it travels. Evidence for the batch answers a challenge
    /// of its digest ([`evidence_nonce`](crate::evidence_nonce)).
    pub fn content(&self) -> &Content {
        &self.to_be_signed.content
    }

    /// What the signature covers ([`ToBeSigned::message`]).
    pub fn message(&self) -> Vec<u8> {
        self.to_be_signed.message()
    }

    /// The SHA-256 value that a TPM signs, and by which the next batch names this one.
    pub fn digest(&self) -> Digest32 {
        self.to_be_signed.digest()
    }

    /// Where the next batch goes on.
    pub fn link(&self) -> Link {
        Link {
            digest: self.digest(),
            next: self.statement.next(),
        }
    }

    /// With the signature, as two scalars, and with what it takes to verify it unless that is the same as for
    /// the batch before.
    pub fn signed(self, signature: [u8; SIGNATURE], credentials: Option<Credentials>) -> Batch {
        Batch {
            unsigned: self,
            credentials,
            signature,
        }
    }
}

impl Batch {
    /// What it says about itself, unverified.
    pub fn unverified_label(&self) -> &Label {
        &self.unsigned.to_be_signed.label
    }

    /// What it says about its readings, unverified.
    pub fn unverified_statement(&self) -> &BatchStatement {
        &self.unsigned.statement
    }

    /// Its credentials, if they are not those of the batch before.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Its signature, as two scalars, unverified.
    pub fn signature(&self) -> &[u8; SIGNATURE] {
        &self.signature
    }

    /// Where the next batch goes on, unverified.
    pub fn link(&self) -> Link {
        self.unsigned.link()
    }

    /// Whether this key signed it, with these readings. Where the key is from is not verified: this is for
    /// its own signer, who goes on with what it wrote before.
    pub fn is_signed_by(&self, key: &PublicArea) -> bool {
        let UnsignedBatch {
            to_be_signed,
            statement,
            readings,
        } = &self.unsigned;
        key.name() == to_be_signed.label.key
            && readings.root(&to_be_signed.label, statement.first) == statement.root
            && UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key_bytes())
                .verify(&to_be_signed.message(), &self.signature)
                .is_ok()
    }

    /// The readings, in the order in which they travel, unverified.
    pub fn unverified_readings(&self) -> &Readings {
        &self.unsigned.readings
    }

    /// Takes the reading with this number out, with its proof. Nothing is verified.
    pub fn take(&self, number: u64, credentials: Credentials) -> Option<ProvenReading> {
        let UnsignedBatch {
            to_be_signed,
            statement,
            readings,
        } = &self.unsigned;
        let index = number.checked_sub(statement.first)?;
        Some(ProvenReading {
            signed: to_be_signed.clone().signed(self.signature, credentials),
            statement: statement.clone(),
            number,
            reading: readings.get(index)?.to_vec(),
            path: readings.path(&to_be_signed.label, statement.first, index)?,
        })
    }

    /// As it travels, in a byte string of its own: a stream is a sequence of such.
    pub fn to_stream(&self) -> Vec<u8> {
        encoded(|e| e.bytes(&self.to_cbor())?.ok())
    }

    /// As it travels, without the byte string around it.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|e| {
            let UnsignedBatch {
                to_be_signed: ToBeSigned { label, content },
                readings,
                ..
            } = &self.unsigned;
            e.array(2)?;
            let credentials = self.credentials.as_ref();
            write_sign1(e, (label, content), credentials, &self.signature)?;
            readings.write(e)
        })
    }

    /// Reads a batch.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, FormatError> {
        readable(bytes, MAX_BATCH)?;
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(2) {
            return Err(decode::Error::message("it is no batch with its readings").into());
        }
        let (to_be_signed, credentials, signature) = read_sign1(&mut d)?;
        let statement = statement_of(&to_be_signed)?;
        let readings = Readings::read(&mut d)?;
        let batch = Self {
            unsigned: UnsignedBatch {
                to_be_signed,
                statement,
                readings,
            },
            credentials,
            signature,
        };
        match batch.to_cbor() == bytes {
            true => Ok(batch),
            false => Err(FormatError::NotDeterministic),
        }
    }
}

/// What is signed, if it is a batch.
pub(super) fn statement_of(signed: &ToBeSigned) -> Result<BatchStatement, FormatError> {
    match &signed.content {
        Content::Attached(payload) if signed.label.content_type.as_str() == BATCH_TYPE => {
            BatchStatement::from_cbor(payload)
        }
        _ => Err(decode::Error::message("what is signed is no batch by its content type").into()),
    }
}

// A statement always travels with its signature.
const _: () = assert!(MAX_ATTACHED > 1024);
