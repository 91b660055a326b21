//! Batches that were verified at another time, and are passed over for what comes behind them.

use cert_chain::Digest32;

use crate::stream::batch::Batch;
use crate::stream::position::Position;

/// Takes batches up to the one at which a position ends. Of these it keeps the last that has evidence, if
/// the digests lead from the position back to it: then it is a batch of this very stream.
#[derive(Debug)]
pub struct Seen {
    pub(super) position: Position,
    evidence: Option<Passed>,
}

/// A batch that has evidence, and those behind it.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) batch: Batch,
    /// The latest time that any of them says.
    pub(super) latest: u64,
    /// Digest of the last of them.
    end: Digest32,
}

impl Seen {
    /// For what was verified up to this position.
    pub fn up_to(position: Position) -> Self {
        Self {
            position,
            evidence: None,
        }
    }

    /// Passes over a batch. Whether the position ends with it.
    pub fn pass(&mut self, batch: Batch) -> bool {
        let link = batch.link();
        let label = batch.unverified_label();
        let previous = batch.unverified_statement().previous;
        self.evidence = match self.evidence.take() {
            _ if label.evidence.is_some() => Some(Passed {
                latest: label.time,
                end: link.digest,
                batch,
            }),
            Some(passed) if previous == Some(passed.end) => Some(Passed {
                latest: passed.latest.max(label.time),
                end: link.digest,
                ..passed
            }),
            _ => None,
        };
        link == self.position.link
    }

    /// The batch with the evidence that counts behind the position.
    pub(super) fn into_parts(self) -> (Position, Option<Passed>) {
        let end = self.position.link.digest;
        let evidence = self.evidence.filter(|passed| passed.end == end);
        (self.position, evidence)
    }
}
