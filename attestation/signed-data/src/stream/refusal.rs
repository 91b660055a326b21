//! Why a batch is not the next of its stream, or its readings are not those that were signed.

use cert_chain::TpmName;

use crate::refusal::DataRefusal;
use crate::text::LabelText;

/// Why a batch or a reading is refused. Readings are named by their numbers in the stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamRefusal {
    /// The signature, what it covers, or the way to its key.
    #[error(transparent)]
    Data(#[from] DataRefusal),
    /// Nothing is known of the key.
    #[error(
        "the batch of readings from {0} on comes without credentials, and those of the batch before are not \
         known: begin with a batch that has them, or with a position"
    )]
    CredentialsMissing(u64),
    /// Another stream's batch.
    #[error("a batch of the stream {found:?} stands in the stream {expected:?}")]
    Stream {
        /// The label's.
        found: LabelText,
        /// The stream that is verified.
        expected: LabelText,
    },
    /// Another key's batch.
    #[error("a batch by the key {found} stands in a stream by the key {expected}")]
    Source {
        /// The label's.
        found: TpmName,
        /// The stream's so far.
        expected: TpmName,
    },
    /// It was verified before.
    #[error(
        "the batch of readings {from} to {to} is replayed: it was signed before the last that is known"
    )]
    Replayed {
        /// Its first reading.
        from: u64,
        /// Its last.
        to: u64,
    },
    /// Not there.
    #[error("readings {from} to {to} were dropped: no batch with them comes")]
    Dropped {
        /// The first that is missing.
        from: u64,
        /// The last that is known to be.
        to: u64,
    },
    /// Too late.
    #[error(
        "batches were reordered: the one of readings {from} to {to} comes later than its place"
    )]
    Reordered {
        /// Its first reading.
        from: u64,
        /// Its last.
        to: u64,
    },
    /// Two ways on.
    #[error(
        "the stream was forked: its source signed another batch of readings {from} to {to} than the one that \
         is known"
    )]
    Forked {
        /// Its first reading.
        from: u64,
        /// Its last.
        to: u64,
    },
    /// A new beginning.
    #[error(
        "the stream begins anew where reading {expected} should come: its source was started again and does \
         not say what was between"
    )]
    Restarted {
        /// The number that should come.
        expected: u64,
    },
    /// Its beginning is missing.
    #[error("the stream begins with reading {0}: what was before is not there")]
    BegunEarlier(u64),
    /// It follows, and says otherwise.
    #[error("the batch says that it begins with reading {found}, where {expected} comes")]
    Misnumbered {
        /// Its number.
        found: u64,
        /// The one that should come.
        expected: u64,
    },
    /// Within a batch.
    #[error("readings {from} to {to} were dropped from their batch")]
    ReadingsDropped {
        /// The first that is missing.
        from: u64,
        /// The last of those.
        to: u64,
    },
    /// Within a batch.
    #[error("reading {0} is twice in its batch")]
    ReadingReplayed(u64),
    /// Within a batch.
    #[error("the readings of a batch were reordered: {0} is not in its place")]
    ReadingsReordered(u64),
    /// Within a batch.
    #[error("a reading with number {0} was added to a batch that has none")]
    ReadingAdded(u64),
    /// Within a batch.
    #[error(
        "readings {from} to {to} are not those that were signed: some were altered, or put into the place \
         of others"
    )]
    ReadingsAltered {
        /// The batch's first.
        from: u64,
        /// The batch's last.
        to: u64,
    },
    /// A single reading.
    #[error(
        "reading {number} is not part of the batch of readings {first} to {}: it was altered, or is one of \
         another number or stream",
        .next.saturating_sub(1)
    )]
    NotInBatch {
        /// Its number.
        number: u64,
        /// The batch's first.
        first: u64,
        /// The number after the batch's last.
        next: u64,
    },
}

impl StreamRefusal {
    /// A short name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Data(refusal) => refusal.code(),
            Self::CredentialsMissing(_) => "credentials-missing",
            Self::Stream { .. } => "stream",
            Self::Source { .. } => "source",
            Self::Replayed { .. } => "replayed",
            Self::Dropped { .. } => "dropped",
            Self::Reordered { .. } => "reordered",
            Self::Forked { .. } => "forked",
            Self::Restarted { .. } => "restarted",
            Self::BegunEarlier(_) => "begun-earlier",
            Self::Misnumbered { .. } => "misnumbered",
            Self::ReadingsDropped { .. } => "readings-dropped",
            Self::ReadingReplayed(_) => "readings-replayed",
            Self::ReadingsReordered(_) => "readings-reordered",
            Self::ReadingAdded(_) => "readings-added",
            Self::ReadingsAltered { .. } => "readings-altered",
            Self::NotInBatch { .. } => "reading",
        }
    }
}
