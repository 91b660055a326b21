//! The chain of batches: each batch that the store commits names the one before it, and carries
//! a link that only this host's manager can make.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cert_chain::{Digest32, Generation};
use minicbor::data::Type;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use ring::hmac;
use serde::Serialize;

use super::interval::CheckpointInterval;
use super::keys::RollbackKeys;
use super::log_mark::LogMark;
use crate::disk::Epoch;

/// What the store keeps of one committed batch. Its link is
/// HMAC-SHA-256(chain key, everything before it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRecord {
    version: u8,
    epoch: Epoch,
    previous: Link,
    root: Digest32,
    highest: Generation,
    time: UnixSeconds,
    salt: Salt,
    kind: Kind,
    power_loss: Option<PowerLoss>,
    log: Option<LogMark>,
    link: Link,
}

/// A start after which it cannot be shown whether the newest batches had been cut off. Each batch
/// repeats it, until a later one takes its place or a recovery gives all vRoTs a new generation:
/// no restart and no shutdown makes it undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PowerLoss {
    /// The batch that the start made: what may be missing came before it.
    pub batch: Epoch,
    /// When that was, by the host's clock: for people to read.
    pub time: UnixSeconds,
    /// Changes made this long before the loss may be missing, and no older ones.
    pub window: CheckpointInterval,
}

/// The authenticated name of a batch: as the anchor holds it, and as the next batch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Link(#[n(0)] Digest32);

/// What a batch was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The store's first batch, by `host init`.
    First,
    /// Changes of vRoTs.
    Changes,
    /// The first start after a TPM reset. It ties what follows to this start, so that nothing
    /// that was committed after the same predecessor and then cut off can come back later.
    Start,
    /// An operator accepted the store as it was. It continues the anchor by naming what the
    /// anchor held.
    Recovery {
        /// Link in the volatile register, where it held one.
        volatile: Option<Link>,
        /// Link in the durable register, where it held one.
        durable: Option<Link>,
    },
}

/// Makes two batches after the same predecessor two different batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt([u8; 16]);

/// Seconds since 1970 by the host's clock: for people to read. Nothing is ordered, accepted or
/// found to be due by it: it can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct UnixSeconds(#[n(0)] u64);

/// Why a chain record was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainRecordError {
    /// No record of this version.
    #[error("a chain record cannot be read")]
    Format(#[source] DecodeError),
    /// The link is not this host's.
    #[error("batch {epoch} was not made by this host, or was altered")]
    Link {
        /// What it says of its own place.
        epoch: Epoch,
    },
}

/// Version of the stored record, its first field; also enters the link. A record of version 2 is
/// the same without the mark of the log, one of version 1 also without the loss of power; both stay
/// readable. One of version 4 is made only where more than one line is missing from the log: earlier
/// versions have room for one, and a manager that knows no more refuses it rather than forget one.
const VERSION: u8 = 3;
const WITH_LATER_MISSING: u8 = 4;
const WITHOUT_LOG: u8 = 2;
const WITHOUT_POWER_LOSS: u8 = 1;

const LINK_DOMAIN: &str = "vrot rollback link v1";

/// The fields of a batch before its link exists.
pub(super) struct ChainRecordFields {
    pub(super) epoch: Epoch,
    pub(super) previous: Link,
    pub(super) root: Digest32,
    pub(super) highest: Generation,
    pub(super) time: UnixSeconds,
    pub(super) salt: Salt,
    pub(super) kind: Kind,
    pub(super) power_loss: Option<PowerLoss>,
    pub(super) log: Option<LogMark>,
}

impl ChainRecord {
    pub(super) fn new(keys: &RollbackKeys, fields: ChainRecordFields) -> Self {
        let has_later = fields.log.is_some_and(|log| log.later.is_some());
        let mut batch = Self {
            version: match has_later {
                true => WITH_LATER_MISSING,
                false => VERSION,
            },
            epoch: fields.epoch,
            previous: fields.previous,
            root: fields.root,
            highest: fields.highest,
            time: fields.time,
            salt: fields.salt,
            kind: fields.kind,
            power_loss: fields.power_loss,
            log: fields.log,
            link: Link::NONE,
        };
        let tag = hmac::sign(keys.chain(), &batch.linked());
        let mut link = [0; 32];
        link.copy_from_slice(tag.as_ref());
        batch.link = Link(Digest32::new(link));
        batch
    }

    /// Reads a stored record and checks its link. That it is the *newest* batch, or belongs
    /// where it lies, is not established.
    pub fn open(keys: &RollbackKeys, record: &[u8]) -> Result<Self, ChainRecordError> {
        let batch: Self = minicbor::decode(record).map_err(ChainRecordError::Format)?;
        let link = batch.link.as_bytes();
        hmac::verify(keys.chain(), &batch.linked(), link)
            .map_err(|_| ChainRecordError::Link { epoch: batch.epoch })?;
        Ok(batch)
    }

    /// The record as it is stored.
    pub fn to_record(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        // Infallible: a vector takes every byte.
        let _ = encoder.encode(self);
        encoder.into_writer()
    }

    /// The batch's number.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The batch's link.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The link of the batch it follows.
    pub fn previous(&self) -> Link {
        self.previous
    }

    /// Root of the tree after this batch.
    pub fn root(&self) -> Digest32 {
        self.root
    }

    /// The highest generation that any vRoT of this host has had.
    pub fn highest(&self) -> Generation {
        self.highest
    }

    /// When the batch was made, by the host's clock.
    pub fn time(&self) -> UnixSeconds {
        self.time
    }

    /// What it was made for.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The last start before which batches may have been cut off.
    pub fn power_loss(&self) -> Option<PowerLoss> {
        self.power_loss
    }

    /// What it says of the log beside the store; `None` in a store that has not known of one.
    pub fn log(&self) -> Option<LogMark> {
        self.log
    }

    /// Whether this batch was made to come directly after the batch with this link: as its
    /// successor, or as a recovery that names it as what the anchor held.
    pub(super) fn continues(&self, link: Link) -> bool {
        self.previous == link || self.supersedes(link)
    }

    /// Whether this is a recovery made while the anchor held `link`.
    pub(super) fn supersedes(&self, link: Link) -> bool {
        match &self.kind {
            Kind::Recovery { volatile, durable } => [volatile, durable].contains(&&Some(link)),
            _ => false,
        }
    }

    fn linked(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        // Infallible: a vector takes every byte.
        let _ = encoder
            .array(2)
            .and_then(|e| e.str(LINK_DOMAIN))
            .and_then(|e| e.array(fields(self.version) - 1))
            .map(drop);
        let _ = self.encode_fields(&mut encoder, &mut ());
        encoder.into_writer()
    }

    fn encode_fields<C, W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder
            .u8(self.version)?
            .encode_with(self.epoch, context)?
            .encode_with(self.previous, context)?
            .encode_with(self.root, context)?
            .encode_with(self.highest, context)?
            .encode_with(self.time, context)?
            .bytes(&self.salt.0)?
            .encode_with(&self.kind, context)?;
        match (self.version, &self.power_loss) {
            (WITHOUT_POWER_LOSS, _) => &mut *encoder,
            (_, None) => encoder.null()?,
            (_, Some(loss)) => encoder
                .array(3)?
                .encode_with(loss.batch, context)?
                .encode_with(loss.time, context)?
                .u16(loss.window.seconds())?,
        };
        match (self.version, &self.log) {
            (WITHOUT_POWER_LOSS | WITHOUT_LOG, _) => encoder,
            (_, None) => encoder.null()?,
            (_, Some(log)) => encoder.encode_with(log, context)?,
        }
        .ok()
    }
}

/// Version, epoch, previous, root, highest generation, time, salt, kind, loss of power, log, link.
const fn fields(version: u8) -> u64 {
    match version {
        WITHOUT_POWER_LOSS => 9,
        WITHOUT_LOG => 10,
        _ => 11,
    }
}

impl PowerLoss {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Option<Self>, DecodeError> {
        let position = decoder.position();
        if decoder.datatype()? == Type::Null {
            return decoder.null().map(|()| None);
        }
        let wrong = || DecodeError::message("no loss of power").at(position);
        if decoder.array()? != Some(3) {
            return Err(wrong());
        }
        Ok(Some(Self {
            batch: decoder.decode()?,
            time: decoder.decode()?,
            window: CheckpointInterval::from_secs(decoder.u16()?.into()).ok_or_else(wrong)?,
        }))
    }
}

impl<C> Encode<C> for ChainRecord {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.array(fields(self.version))?;
        self.encode_fields(encoder, context)?;
        encoder.encode_with(self.link, context)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ChainRecord {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        let wrong = |text: &'static str| DecodeError::message(text).at(position);
        let (length, version) = (decoder.array()?, decoder.u8()?);
        let known = [WITH_LATER_MISSING, VERSION, WITHOUT_LOG, WITHOUT_POWER_LOSS];
        let is_known = known.contains(&version);
        if !is_known || length != Some(fields(version)) {
            return Err(wrong("no chain record of version 1, 2, 3 or 4"));
        }
        Ok(Self {
            version,
            epoch: decoder.decode_with(context)?,
            previous: decoder.decode_with(context)?,
            root: decoder.decode_with(context)?,
            highest: decoder.decode_with(context)?,
            time: decoder.decode_with(context)?,
            salt: Salt(
                (decoder.bytes()?)
                    .try_into()
                    .map_err(|_| wrong("a salt has 16 bytes"))?,
            ),
            kind: decoder.decode_with(context)?,
            power_loss: match version {
                WITHOUT_POWER_LOSS => None,
                _ => PowerLoss::decode(decoder)?,
            },
            log: match version {
                WITHOUT_POWER_LOSS | WITHOUT_LOG => None,
                _ => LogMark::decode_optional(decoder, version == WITH_LATER_MISSING)?,
            },
            link: decoder.decode_with(context)?,
        })
    }
}

const FIRST: u8 = 0;
const CHANGES: u8 = 1;
const START: u8 = 2;
const RECOVERY: u8 = 3;

impl<C> Encode<C> for Kind {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::First => encoder.array(1)?.u8(FIRST)?,
            Self::Changes => encoder.array(1)?.u8(CHANGES)?,
            Self::Start => encoder.array(1)?.u8(START)?,
            Self::Recovery { volatile, durable } => encoder
                .array(3)?
                .u8(RECOVERY)?
                .encode_with(volatile, context)?
                .encode_with(durable, context)?,
        }
        .ok()
    }
}

impl<'b, C> Decode<'b, C> for Kind {
    fn decode(decoder: &mut Decoder<'b>, context: &mut C) -> Result<Self, DecodeError> {
        let position = decoder.position();
        match (decoder.array()?, decoder.u8()?) {
            (Some(1), FIRST) => Ok(Self::First),
            (Some(1), CHANGES) => Ok(Self::Changes),
            (Some(1), START) => Ok(Self::Start),
            (Some(3), RECOVERY) => Ok(Self::Recovery {
                volatile: decoder.decode_with(context)?,
                durable: decoder.decode_with(context)?,
            }),
            _ => Err(DecodeError::message("an unknown kind of batch").at(position)),
        }
    }
}

impl Link {
    /// What a batch without predecessor names. No batch has it: it would be an HMAC of zero.
    pub(super) const NONE: Self = Self(Digest32::new([0; 32]));

    pub(super) const fn new(bytes: [u8; 32]) -> Self {
        Self(Digest32::new(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Salt {
    /// Fresh random bytes (UUID version 4: 122 of the bits are random, from the system).
    pub(super) fn random() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }
}

impl UnixSeconds {
    /// That many seconds after 1970.
    pub const fn new(seconds: u64) -> Self {
        Self(seconds)
    }

    /// The moment as seconds; what lies before 1970 counts as 1970.
    pub fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH);
        Self(since.unwrap_or(Duration::ZERO).as_secs())
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        let text = time::OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .and_then(|time| {
                time.format(&time::format_description::well_known::Rfc3339)
                    .ok()
            });
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{seconds} s after 1970"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    #![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

    use super::super::log_mark::{LogPosition, MissingLog};
    use super::*;

    fn keys() -> RollbackKeys {
        RollbackKeys::derive(&[7; 32])
    }

    fn batch(kind: Kind) -> ChainRecord {
        batch_after(None, None, kind)
    }

    fn batch_after(power_loss: Option<PowerLoss>, log: Option<LogMark>, kind: Kind) -> ChainRecord {
        ChainRecord::new(
            &keys(),
            ChainRecordFields {
                epoch: Epoch::new(5),
                previous: Link::new([1; 32]),
                root: Digest32::new([2; 32]),
                highest: Generation::new(3),
                time: UnixSeconds(1_700_000_000),
                salt: Salt([4; 16]),
                kind,
                power_loss,
                log,
            },
        )
    }

    fn marks() -> [Option<LogMark>; 4] {
        let position = |lines| LogPosition {
            lines,
            head: Digest32::new([6; 32]),
        };
        let mark = LogMark {
            newest: position(4321),
            missing: None,
            later: None,
        };
        let missing = MissingLog {
            position: position(1234),
            found: UnixSeconds(1_650_000_000),
        };
        let later = MissingLog {
            position: position(2345),
            found: UnixSeconds(1_660_000_000),
        };
        let with_missing = LogMark {
            missing: Some(missing),
            ..mark
        };
        let with_later = LogMark {
            later: Some(later),
            ..with_missing
        };
        [None, Some(mark), Some(with_missing), Some(with_later)]
    }

    fn power_loss() -> PowerLoss {
        PowerLoss {
            batch: Epoch::new(4),
            time: UnixSeconds(1_600_000_000),
            window: CheckpointInterval::from_secs(600).unwrap(),
        }
    }

    fn every_batch() -> impl Iterator<Item = ChainRecord> {
        [None, Some(power_loss())]
            .into_iter()
            .flat_map(|loss| marks().map(|log| (loss, log)))
            .flat_map(|(loss, log)| kinds().map(|kind| batch_after(loss, log, kind)))
    }

    fn kinds() -> [Kind; 5] {
        let link = Link::new([9; 32]);
        [
            Kind::First,
            Kind::Changes,
            Kind::Start,
            Kind::Recovery {
                volatile: Some(link),
                durable: None,
            },
            Kind::Recovery {
                volatile: None,
                durable: Some(link),
            },
        ]
    }

    #[test]
    fn a_batch_survives_the_store() {
        for batch in every_batch() {
            assert_eq!(
                ChainRecord::open(&keys(), &batch.to_record()).unwrap(),
                batch
            );
        }
    }

    #[test]
    fn no_byte_of_a_batch_can_change() {
        for batch in every_batch() {
            let record = batch.to_record();
            for index in 0..record.len() {
                let mut changed = record.clone();
                changed[index] ^= 1;
                assert!(
                    ChainRecord::open(&keys(), &changed).is_err(),
                    "byte {index}"
                );
            }
            assert!(ChainRecord::open(&keys(), &record[..record.len() - 1]).is_err());
        }
    }

    #[test]
    fn a_batch_of_another_host_is_refused() {
        let other = RollbackKeys::derive(&[8; 32]);
        let error = ChainRecord::open(&other, &batch(Kind::Start).to_record()).unwrap_err();
        assert!(matches!(error, ChainRecordError::Link { epoch } if epoch == Epoch::new(5)));
    }

    #[test]
    fn kinds_and_their_fields_have_different_links() {
        let links: Vec<Link> = every_batch().map(|batch| batch.link()).collect();
        for (index, link) in links.iter().enumerate() {
            assert!(!links[index + 1..].contains(link));
        }
    }

    #[test]
    fn a_recovery_continues_what_the_anchor_held_too() {
        let [changes, recovery] = [kinds()[1].clone(), kinds()[3].clone()].map(batch);
        assert!(changes.continues(Link::new([1; 32])) && recovery.continues(Link::new([1; 32])));
        assert!(!changes.continues(Link::new([9; 32])));
        assert!(recovery.continues(Link::new([9; 32])));
    }

    /// Stores in the field hold records like this: read as they were written.
    #[test]
    fn version_one_stays_readable() {
        let golden = hex::decode(include_str!("chain_record_v1.hex").trim()).unwrap();
        let read = ChainRecord::open(&keys(), &golden).unwrap();
        assert_eq!(hex::encode(read.to_record()), hex::encode(&golden));
        let recovery = batch(kinds()[3].clone());
        assert_eq!(
            (read.epoch, read.previous),
            (recovery.epoch, recovery.previous)
        );
        assert_eq!((read.kind, read.power_loss), (recovery.kind, None));
    }

    /// The same of version 2.
    #[test]
    fn version_two_stays_readable() {
        let golden = hex::decode(include_str!("chain_record_v2.hex").trim()).unwrap();
        let read = ChainRecord::open(&keys(), &golden).unwrap();
        assert_eq!(hex::encode(read.to_record()), hex::encode(&golden));
        assert_eq!(read.kind, kinds()[3]);
        assert_eq!((read.power_loss, read.log), (Some(power_loss()), None));
    }

    /// The record of version 3, byte for byte. A store in the field holds records like it: if
    /// this fails, the format needs a new version beside the old one.
    #[test]
    fn version_three_stays_as_it_is() {
        let recovery = batch_after(Some(power_loss()), marks()[2], kinds()[3].clone());
        assert_eq!(
            hex::encode(recovery.to_record()),
            include_str!("chain_record_v3.hex").trim()
        );
    }

    /// The same of version 4.
    #[test]
    fn version_four_stays_as_it_is() {
        let recovery = batch_after(Some(power_loss()), marks()[3], kinds()[3].clone());
        assert_eq!(
            hex::encode(recovery.to_record()),
            include_str!("chain_record_v4.hex").trim()
        );
    }

    #[test]
    fn a_time_is_written_for_people() {
        assert_eq!(
            UnixSeconds(1_700_000_000).to_string(),
            "2023-11-14T22:13:20Z"
        );
    }
}
