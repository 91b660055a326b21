//! Readings, and the tree over those of a batch.

use attestation::merkle::{self, MAX_PATH, Tree};
use cert_chain::{Digest32, TrustAnchors};
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};
use rustls_pki_types::UnixTime;

use crate::cose::{FormatError, SignedData, ToBeSigned, encoded, readable, within};
use crate::credentials::MAX_CREDENTIALS;
use crate::label::{Label, digest};
use crate::stream::batch::statement_of;
use crate::stream::refusal::StreamRefusal;
use crate::stream::statement::BatchStatement;
use crate::verification::VerifiedData;

/// The readings of a batch with the places that they say they have in it, from zero: at least one, and within
/// the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings(Vec<(u64, Vec<u8>)>);

/// The most bytes that a reading has.
pub const MAX_READING: usize = 64 * 1024;
/// The most readings that a batch has.
pub const MAX_READINGS: u64 = 65_536;
/// The most bytes that the readings of a batch have together.
pub const MAX_READINGS_BYTES: usize = 4 * 1024 * 1024;

const DOMAIN: &str = "vrot reading v1";

impl Readings {
    /// Readings in their order.
    pub fn new(readings: Vec<Vec<u8>>) -> Result<Self, FormatError> {
        Self::placed((0..).zip(readings).collect())
    }

    /// Readings with places that they say they have.
    fn placed(readings: Vec<(u64, Vec<u8>)>) -> Result<Self, FormatError> {
        const MOST: usize = 65_536;
        within(readings.len(), MOST)?;
        let mut total = 0_usize;
        for (_, reading) in &readings {
            within(reading.len(), MAX_READING)?;
            total = total.saturating_add(reading.len());
        }
        within(total, MAX_READINGS_BYTES)?;
        match readings.is_empty() {
            true => Err(decode::Error::message("a batch without readings").into()),
            false => Ok(Self(readings)),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The readings, in the order in which they travel.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(_, reading)| reading.as_slice())
    }

    /// The places that they say they have.
    pub(super) fn places(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(place, _)| *place)
    }

    pub(super) fn get(&self, index: u64) -> Option<&[u8]> {
        let reading = self.0.get(usize::try_from(index).ok()?);
        reading.map(|(_, reading)| reading.as_slice())
    }

    /// Root of the tree over them.
    pub(super) fn root(&self, label: &Label, first: u64) -> Digest32 {
        match self.tree(label, first) {
            Some(tree) => tree.root(),
            None => unreachable!("there is at least one reading"),
        }
    }

    pub(super) fn path(&self, label: &Label, first: u64, index: u64) -> Option<Vec<Digest32>> {
        self.tree(label, first)?.path(usize::try_from(index).ok()?)
    }

    fn tree(&self, label: &Label, first: u64) -> Option<Tree> {
        let numbers = (0..).map(|index: u64| first.saturating_add(index));
        let leaves = numbers.zip(self.iter());
        Tree::new(
            leaves
                .map(|(number, reading)| leaf(label, number, reading))
                .collect(),
        )
    }

    pub(super) fn write<W: Write>(
        &self,
        e: &mut Encoder<W>,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(self.count())?;
        for (place, reading) in &self.0 {
            e.array(2)?.u64(*place)?.bytes(reading)?;
        }
        Ok(())
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, FormatError> {
        let count = d.array()?.filter(|count| *count <= MAX_READINGS);
        let count = count.ok_or_else(|| decode::Error::message("too many readings in a batch"))?;
        let mut readings = Vec::new();
        for _ in 0..count {
            if d.array()? != Some(2) {
                return Err(decode::Error::message("a reading has a place and bytes").into());
            }
            readings.push((d.u64()?, d.bytes()?.to_vec()));
        }
        Self::placed(readings)
    }
}

/// The leaf of one reading: its source's key, its stream, its number there, and its bytes.
fn leaf(label: &Label, number: u64, reading: &[u8]) -> Digest32 {
    merkle::leaf_hash(&encoded(|e| {
        e.array(5)?.str(DOMAIN)?.bytes(label.key.as_bytes())?;
        e.str(label.stream.as_str())?
            .u64(number)?
            .bytes(reading)?
            .ok()
    }))
}

/// One reading of a batch with what proves it: the batch's signature and credentials, and the path from the
/// reading to the root that was signed. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenReading {
    pub(super) signed: SignedData,
    pub(super) statement: BatchStatement,
    pub(super) number: u64,
    pub(super) reading: Vec<u8>,
    pub(super) path: Vec<Digest32>,
}

/// A reading that is part of a batch which its source signed.
#[derive(Debug)]
pub struct VerifiedReading {
    data: VerifiedData,
    statement: BatchStatement,
    number: u64,
    reading: Vec<u8>,
}

impl VerifiedReading {
    /// What is signed of its batch.
    pub fn statement(&self) -> &BatchStatement {
        &self.statement
    }

    /// Its number in the stream, from zero.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its bytes.
    pub fn reading(&self) -> &[u8] {
        &self.reading
    }

    /// The batch's label, certificates and evidence.
    pub fn data(&self) -> &VerifiedData {
        &self.data
    }

    /// The same, to be held against a policy ([`appraise`](crate::appraise)).
    pub fn into_data(self) -> VerifiedData {
        self.data
    }
}

impl ProvenReading {
    /// The most that one has.
    pub const MAX: usize = MAX_CREDENTIALS + MAX_READING + 40 * MAX_PATH + 4096;

    /// Whether bytes begin as a reading with its proof does, and no other signed data.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0x84)
    }

    /// As it travels.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|e| {
            e.array(4)?;
            self.signed.write(e)?;
            e.u64(self.number)?.bytes(&self.reading)?;
            e.array(self.path.len() as u64)?;
            for node in &self.path {
                e.bytes(node.as_bytes())?;
            }
            Ok(())
        })
    }

    /// Reads one.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, FormatError> {
        readable(bytes, Self::MAX)?;
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(4) {
            return Err(decode::Error::message("it is no reading with its proof").into());
        }
        let signed = SignedData::read(&mut d)?;
        let statement = statement_of(&ToBeSigned {
            label: signed.label.clone(),
            content: signed.content.clone(),
        })?;
        let number = d.u64()?;
        let reading = d.bytes()?;
        within(reading.len(), MAX_READING)?;
        let reading = reading.to_vec();
        let nodes = d.array()?.filter(|nodes| *nodes <= MAX_PATH as u64);
        let nodes = nodes.ok_or_else(|| decode::Error::message("the path is too long"))?;
        let path = (0..nodes).map(|_| digest(d.bytes()?));
        let path = path.collect::<Result<Vec<_>, _>>()?;
        let proven = Self {
            signed,
            statement,
            number,
            reading,
            path,
        };
        match proven.to_cbor() == bytes {
            true => Ok(proven),
            false => Err(FormatError::NotDeterministic),
        }
    }

    /// Verifies the batch's signature as that of [other data](SignedData::verify), and that the reading is
    /// part of what was signed, with this number and in this stream.
    pub fn verify(
        self,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedReading, StreamRefusal> {
        let data = self.signed.verify(None, anchors, at)?;
        let statement = self.statement;
        let not_there = StreamRefusal::NotInBatch {
            number: self.number,
            first: statement.first,
            next: statement.next(),
        };
        let Some(index) = self.number.checked_sub(statement.first) else {
            return Err(not_there);
        };
        let leaf = leaf(data.label(), self.number, &self.reading);
        let root = merkle::root_from_path(leaf, index, statement.count, &self.path);
        match root {
            Ok(root) if root == statement.root => Ok(VerifiedReading {
                data,
                statement,
                number: self.number,
                reading: self.reading,
            }),
            _ => Err(not_there),
        }
    }
}
