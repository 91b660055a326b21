//! What a batch says of a log that its user keeps beside the store: lines in files, each of which
//! names the hash of the one before. So the registers of the physical TPM vouch for that log as
//! well, up to the line that the newest batch names. What the lines say, this crate does not know.

use cert_chain::Digest32;
use minicbor::data::Type;
use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use serde::Serialize;

use super::chain::UnixSeconds;

/// A log whose newest line every batch names.
pub trait MarkedLog: Send + Sync {
    /// What the next batch is to say; `None` while the log was not held yet against what earlier
    /// batches said: the next batch repeats that then. What it names is on the disk.
    fn mark(&self) -> Option<LogMark>;
}

/// What a batch says of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMark {
    /// The newest line.
    pub newest: LogPosition,
    /// What an earlier batch said, and was not found in the log. Each batch repeats it until
    /// somebody accepts that: no restart makes it undone.
    pub missing: Option<MissingLog>,
    /// The same of what was found missing before the first was accepted; of several, the newest.
    pub later: Option<MissingLog>,
}

/// A line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LogPosition {
    /// Its number, counted from one: how many lines there were. Zero where there was none.
    pub lines: u64,
    /// Its hash, which covers all lines before it.
    pub head: Digest32,
}

/// A line that the log did not have any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MissingLog {
    /// The line.
    pub position: LogPosition,
    /// When that was found, by the host's clock: for people to read.
    pub found: UnixSeconds,
}

/// Lines, hash, what is missing.
const FIELDS: u64 = 3;
/// The same, and what is missing besides.
const FIELDS_WITH_LATER: u64 = 4;

impl LogMark {
    /// One with [`later`](Self::later), or one without.
    pub(super) fn decode_optional(
        decoder: &mut Decoder<'_>,
        has_later: bool,
    ) -> Result<Option<Self>, DecodeError> {
        let position = decoder.position();
        if decoder.datatype()? == Type::Null {
            return decoder.null().map(|()| None);
        }
        let fields = match has_later {
            true => FIELDS_WITH_LATER,
            false => FIELDS,
        };
        if decoder.array()? != Some(fields) {
            return Err(DecodeError::message("no mark of a log").at(position));
        }
        let newest = LogPosition::decode(decoder)?;
        let missing = if decoder.datatype()? == Type::Null {
            decoder.null()?;
            None
        } else {
            Some(MissingLog::decode(decoder)?)
        };
        let later = match has_later {
            true => Some(MissingLog::decode(decoder)?),
            false => None,
        };
        Ok(Some(Self {
            newest,
            missing,
            later,
        }))
    }
}

impl MissingLog {
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let position = decoder.position();
        if decoder.array()? != Some(FIELDS) {
            return Err(DecodeError::message("no missing line of a log").at(position));
        }
        Ok(Self {
            position: LogPosition::decode(decoder)?,
            found: decoder.decode()?,
        })
    }
}

impl<C> Encode<C> for MissingLog {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder
            .array(FIELDS)?
            .u64(self.position.lines)?
            .encode_with(self.position.head, context)?
            .encode_with(self.found, context)?
            .ok()
    }
}

impl LogPosition {
    /// Its two fields, in the array around them.
    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            lines: decoder.u64()?,
            head: Digest32::decode(decoder, &mut ())?,
        })
    }
}

impl<C> Encode<C> for LogMark {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let fields = match self.later {
            Some(_) => FIELDS_WITH_LATER,
            None => FIELDS,
        };
        encoder
            .array(fields)?
            .u64(self.newest.lines)?
            .encode_with(self.newest.head, context)?;
        match &self.missing {
            None => encoder.null()?,
            Some(missing) => encoder.encode_with(missing, context)?,
        };
        match &self.later {
            None => encoder,
            Some(later) => encoder.encode_with(later, context)?,
        }
        .ok()
    }
}
