//! What is signed of a batch.

use cert_chain::Digest32;
use minicbor::encode::Write;
use minicbor::{Decoder, Encoder, decode, encode};

use crate::cose::{FormatError, encoded};
use crate::label::{Label, digest};
use crate::stream::reading::{MAX_READINGS, Readings};
use crate::text::LabelText;

/// The payload of a batch's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchStatement {
    /// Root of the tree over the readings (RFC 9162 §2.1.1).
    pub root: Digest32,
    /// How many readings there are.
    pub count: u64,
    /// Number of the first reading in its stream, from zero.
    pub first: u64,
    /// The batch before, if this one does not begin the stream: the SHA-256 value that was signed of it.
    pub previous: Option<Digest32>,
    /// What the readings are: a media type.
    pub content_type: LabelText,
    /// When they were taken in.
    pub span: Span,
}

/// When the first and the last reading of a batch were taken in, by the source's clock, in milliseconds
/// since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// The end of a batch, where the next one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The SHA-256 value that was signed of the batch: of its label and statement.
    pub digest: Digest32,
    /// Number of the next reading.
    pub next: u64,
}

/// The content type in the label of a batch: a `batch-statement` of `signed-data.cddl`.
pub const BATCH_TYPE: &str = "application/vnd.vrot.batch-statement+cbor";

const DOMAIN: &str = "vrot batch v1";

impl BatchStatement {
    /// States these readings, under this label, after the batch that ends there.
    pub fn over(
        readings: &Readings,
        label: &Label,
        after: Option<Link>,
        content_type: LabelText,
        span: Span,
    ) -> Self {
        let first = after.map_or(0, |link| link.next);
        Self {
            root: readings.root(label, first),
            count: readings.count(),
            first,
            previous: after.map(|link| link.digest),
            content_type,
            span,
        }
    }

    /// Number of the reading after the last; none has the highest number there is.
    pub fn next(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// As it is signed.
    pub fn to_cbor(&self) -> Vec<u8> {
        encoded(|e| self.write(e))
    }

    fn write<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), encode::Error<W::Error>> {
        e.array(8)?.str(DOMAIN)?;
        e.bytes(self.root.as_bytes())?
            .u64(self.count)?
            .u64(self.first)?;
        match &self.previous {
            Some(previous) => e.bytes(previous.as_bytes())?,
            None => e.null()?,
        };
        e.str(self.content_type.as_str())?;
        e.u64(self.span.from)?.u64(self.span.to)?.ok()
    }

    pub(crate) fn from_cbor(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut d = Decoder::new(bytes);
        let statement = Self::read(&mut d)?;
        match statement.to_cbor() == bytes {
            true => Ok(statement),
            false => Err(FormatError::NotDeterministic),
        }
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, decode::Error> {
        if d.array()? != Some(8) || d.str()? != DOMAIN {
            return Err(decode::Error::message("what is signed is no batch"));
        }
        let root = digest(d.bytes()?)?;
        let (count, first) = (d.u64()?, d.u64()?);
        if count == 0 || count > MAX_READINGS || first.checked_add(count).is_none() {
            return Err(decode::Error::message(
                "a batch has no such number of readings",
            ));
        }
        let previous = match d.datatype()? {
            minicbor::data::Type::Null => {
                d.null()?;
                None
            }
            _ => Some(digest(d.bytes()?)?),
        };
        let content_type = d.str()?.parse().map_err(decode::Error::custom)?;
        let span = Span {
            from: d.u64()?,
            to: d.u64()?,
        };
        Ok(Self {
            root,
            count,
            first,
            previous,
            content_type,
            span,
        })
    }
}
