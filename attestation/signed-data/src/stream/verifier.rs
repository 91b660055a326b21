//! From batches to verified batches of one stream.

use std::collections::VecDeque;

use attestation::evidence::CarriedCrls;
use attestation::{Evidence, PolicyAbout, Verdict};
use cert_chain::{Digest32, TrustAnchors};
use rustls_pki_types::UnixTime;

use crate::appraisal::{DataReason, DataResult, Demand, EvidenceResult, appraise};
use crate::cose::SignedData;
use crate::credentials::Credentials;
use crate::stream::batch::{Batch, UnsignedBatch};
use crate::stream::order;
use crate::stream::position::Position;
use crate::stream::reading::{ProvenReading, Readings};
use crate::stream::refusal::StreamRefusal;
use crate::stream::seen::{Passed, Seen};
use crate::stream::statement::{BatchStatement, Link};
use crate::verification::{VerifiedData, VerifiedSource};

/// Takes the batches of one stream in their order, and remembers where it is, in constant memory.
#[derive(Clone, Debug, Default)]
pub struct StreamVerifier {
    last: Option<Position>,
    /// Digests and numbers of the last batches, the newest last.
    recent: VecDeque<(Digest32, u64)>,
    evidence: Option<CarriedEvidence>,
    /// Revocation lists of the last evidence that had some.
    lists: CarriedCrls,
    restarts: bool,
    join: bool,
}

/// Evidence of an earlier batch.
#[derive(Clone, Copy, Debug)]
struct CarriedEvidence {
    /// When it was asked for, by the source's clock, in seconds since 1970.
    taken: u64,
    /// The latest time that a batch since then says: a clock that goes back makes no evidence younger.
    latest: u64,
    verdict: Verdict,
}

/// Which evidence counts for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEvidence {
    /// Its own.
    Own,
    /// That of an earlier batch, which is worth this. What booted since then is not known.
    Earlier(Verdict),
    /// None.
    None,
}

/// A batch that its source signed, next in its stream, with the readings that were signed.
#[derive(Debug)]
pub struct VerifiedBatch {
    data: VerifiedData,
    batch: Batch,
    credentials: Credentials,
    restarted: bool,
}

/// A verified batch with what it is worth.
#[derive(Debug)]
pub struct BatchResult {
    result: DataResult,
    batch: Batch,
    credentials: Credentials,
    restarted: bool,
    evidence_age: Option<u64>,
    evidence: BatchEvidence,
    reasons: Vec<DataReason>,
}

/// So many batches are remembered, by which a batch that was seen is told from one that was not.
const REMEMBERED: usize = 64;
/// After a gap, the batch that is missing is looked for in so many that follow.
const LOOKED_FOR_IN: usize = 64;

impl StreamVerifier {
    /// For a stream from its beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// For a stream that was verified up to this position.
    pub fn after(position: Position) -> Self {
        Self {
            recent: [(position.link.digest, position.sequence)].into(),
            last: Some(position),
            ..Self::default()
        }
    }

    /// The same where the batches up to the position are there. The evidence of the last that has some is
    /// verified and appraised anew, and counts for those that follow; if it proves nothing any more, there is
    /// none. The same goes for the revocation lists that it carries.
    pub fn after_seen(
        seen: Seen,
        policy: &PolicyAbout,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Self {
        let (position, passed) = seen.into_parts();
        let mut verifier = Self::after(position);
        if let Some(passed) = passed {
            verifier.recall(passed, policy, anchors, at);
        }
        verifier
    }

    fn recall(
        &mut self,
        passed: Passed,
        policy: &PolicyAbout,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) {
        let Passed { batch, latest, .. } = passed;
        let Ok((data, credentials)) = self.verify_signature(&batch, anchors, at) else {
            return;
        };
        let label = data.label();
        let same = |last: &Position| last.key == label.key && last.stream == label.stream;
        let (Some(taken), true) = (
            label.evidence.map(|evidence| evidence.taken),
            self.last.as_ref().is_some_and(same),
        ) else {
            return;
        };
        self.take_lists(&data, &credentials);
        let alone = Demand {
            identity_alone: true,
            ..Demand::default()
        };
        let result = appraise(data, policy, &alone).ok();
        if let Some(attestation) = result.as_ref().and_then(|result| result.attestation()) {
            self.evidence = Some(CarriedEvidence {
                taken,
                latest,
                verdict: attestation.verdict(),
            });
        }
    }

    /// Keeps the revocation lists of evidence that was verified. That of devices carries none.
    fn take_lists(&mut self, data: &VerifiedData, credentials: &Credentials) {
        let carried = match (data.source(), &credentials.evidence) {
            (
                VerifiedSource::Vm {
                    evidence: Some(_), ..
                },
                Some(bytes),
            ) => Evidence::from_cbor(bytes).ok(),
            _ => None,
        };
        let lists = carried.map(|evidence| evidence.crls);
        if let Some(lists) = lists.filter(|lists| lists.iter().next().is_some()) {
            self.lists = lists;
        }
    }

    /// Takes it that the stream begins anew, as it does when its source was started again without knowing
    /// where it had been. What came in between is then not known.
    pub fn allow_restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// Takes a stream up where it is, whatever came before.
    pub fn join(mut self) -> Self {
        self.join = true;
        self
    }

    /// The end of the last batch that was verified.
    pub fn position(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    /// Verifies that a batch is signed as [other data](SignedData::verify) are, that it is the next of the
    /// stream, and that its readings are those that were signed.
    pub fn verify(
        &mut self,
        batch: Batch,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedBatch, StreamRefusal> {
        let (data, credentials) = self.verify_signature(&batch, anchors, at)?;
        let UnsignedBatch {
            statement,
            readings,
            ..
        } = &batch.unsigned;
        let link = batch.link();
        let restarted = self.place(&data, statement, &link)?;
        order::check(statement, readings)?;
        if readings.root(data.label(), statement.first) != statement.root {
            let (from, to) = range(statement);
            return Err(StreamRefusal::ReadingsAltered { from, to });
        }
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((link.digest, data.label().sequence));
        if restarted {
            self.evidence = None;
            self.lists = CarriedCrls::default();
        }
        self.take_lists(&data, &credentials);
        self.last = Some(Position {
            link,
            sequence: data.label().sequence,
            key: data.label().key.clone(),
            stream: data.label().stream.clone(),
            credentials: Credentials {
                evidence: None,
                ..credentials.clone()
            },
        });
        Ok(VerifiedBatch {
            data,
            batch,
            credentials,
            restarted,
        })
    }

    /// Compares a batch with a policy and a demand, as [`appraise`] does other data. If the demand says how
    /// old evidence may be, that of an earlier batch counts as well: each batch names the one before, so the
    /// same source signed them all. It says nothing about what that source booted since. How old it is, is the
    /// source's word too: only together with [`Demand::max_delay`] is it bounded by the verifier's clock.
    pub fn appraise(
        &mut self,
        verified: VerifiedBatch,
        policy: &PolicyAbout,
        demand: &Demand,
    ) -> Result<BatchResult, StreamRefusal> {
        let VerifiedBatch {
            data,
            batch,
            credentials,
            restarted,
        } = verified;
        let time = data.label().time;
        let own = data.label().evidence.map(|evidence| evidence.taken);
        let carried = match (own, demand.max_evidence_age) {
            (None, Some(most)) => self.evidence.map(|evidence| (evidence, most)),
            _ => None,
        };
        let mut reasons = Vec::new();
        let mut evidence_age = data.evidence_age();
        let mut demand = demand.clone();
        if let Some((evidence, most)) = carried {
            demand.max_evidence_age = None;
            demand.identity_alone = true;
            let latest = evidence.latest.max(time);
            evidence_age = (time >= evidence.taken).then(|| latest.saturating_sub(evidence.taken));
            if evidence_age.is_none_or(|age| age > most) {
                reasons.push(old(evidence_age, most));
            }
        }
        let result = appraise(data, policy, &demand)?;
        let evidence = match (own, result.attestation()) {
            (Some(taken), Some(attestation)) => {
                self.evidence = Some(CarriedEvidence {
                    taken,
                    latest: time,
                    verdict: attestation.verdict(),
                });
                BatchEvidence::Own
            }
            _ => carried.map_or(BatchEvidence::None, |(evidence, _)| {
                BatchEvidence::Earlier(evidence.verdict)
            }),
        };
        if let Some(evidence) = &mut self.evidence {
            evidence.latest = evidence.latest.max(time);
        }
        Ok(BatchResult {
            result,
            batch,
            credentials,
            restarted,
            evidence_age,
            evidence,
            reasons,
        })
    }

    /// Why a batch is missing, by those that follow in the input: it may come later than its place.
    pub fn explain(
        &self,
        refusal: StreamRefusal,
        following: impl Iterator<Item = Batch>,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> StreamRefusal {
        let (StreamRefusal::Dropped { .. }, Some(last)) = (&refusal, &self.last) else {
            return refusal;
        };
        for batch in following.take(LOOKED_FOR_IN) {
            let statement = batch.unverified_statement();
            let (from, to) = range(statement);
            if statement.previous == Some(last.link.digest)
                && self.verify_signature(&batch, anchors, at).is_ok()
            {
                return StreamRefusal::Reordered { from, to };
            }
        }
        refusal
    }

    fn verify_signature(
        &self,
        batch: &Batch,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<(VerifiedData, Credentials), StreamRefusal> {
        let known = self.last.as_ref().map(|last| &last.credentials);
        let credentials = (batch.credentials.as_ref().or(known)).cloned();
        let missing = StreamRefusal::CredentialsMissing(batch.unsigned.statement.first);
        let credentials = credentials.ok_or(missing)?;
        let to_be_signed = batch.unsigned.to_be_signed.clone();
        let signed: SignedData = to_be_signed.signed(batch.signature, credentials.clone());
        let verified = match self.lists.iter().next() {
            None => signed.verify(None, anchors, at),
            Some(_) => signed.verify(None, &anchors.with_carried(self.lists.iter()), at),
        };
        Ok((verified?, credentials))
    }

    /// Whether a genuine batch is the next of the stream; and whether the stream begins anew with it.
    fn place(
        &self,
        data: &VerifiedData,
        statement: &BatchStatement,
        link: &Link,
    ) -> Result<bool, StreamRefusal> {
        let label = data.label();
        let misnumbered = |expected| StreamRefusal::Misnumbered {
            found: statement.first,
            expected,
        };
        if statement.previous.is_none() && statement.first != 0 {
            return Err(misnumbered(0));
        }
        let Some(last) = &self.last else {
            return match statement.previous.is_none() || self.join {
                true => Ok(false),
                false => Err(StreamRefusal::BegunEarlier(statement.first)),
            };
        };
        if label.stream != last.stream {
            return Err(StreamRefusal::Stream {
                found: label.stream.clone(),
                expected: last.stream.clone(),
            });
        }
        if label.key != last.key {
            return Err(StreamRefusal::Source {
                found: label.key.clone(),
                expected: last.key.clone(),
            });
        }
        let (from, to) = range(statement);
        let known = |digest: &Digest32| self.recent.iter().any(|(known, _)| known == digest);
        let remembered_from = (self.recent.front()).map_or(last.sequence, |(_, number)| *number);
        if known(&link.digest) || label.sequence < remembered_from {
            return Err(StreamRefusal::Replayed { from, to });
        }
        if label.sequence <= last.sequence {
            return Err(StreamRefusal::Forked { from, to });
        }
        match &statement.previous {
            None if self.restarts => Ok(true),
            None => Err(StreamRefusal::Restarted {
                expected: last.link.next,
            }),
            Some(previous) if *previous == last.link.digest => match from == last.link.next {
                true => Ok(false),
                false => Err(misnumbered(last.link.next)),
            },
            Some(previous) if known(previous) || from <= last.link.next => {
                Err(StreamRefusal::Forked { from, to })
            }
            Some(_) => Err(StreamRefusal::Dropped {
                from: last.link.next,
                to: from.saturating_sub(1),
            }),
        }
    }
}

fn range(statement: &BatchStatement) -> (u64, u64) {
    (statement.first, statement.next().saturating_sub(1))
}

fn old(age: Option<u64>, most: u64) -> DataReason {
    let text = match age {
        Some(age) => format!(
            "the newest evidence of the stream was taken {age} s before the batch was signed; {most} s are \
             allowed"
        ),
        None => {
            "the batch says that it was signed before the newest evidence of the stream was taken"
                .to_owned()
        }
    };
    DataReason {
        code: "evidence-old",
        text,
    }
}

impl VerifiedBatch {
    /// The batch's label and certificates.
    pub fn data(&self) -> &VerifiedData {
        &self.data
    }

    /// What is signed of it.
    pub fn statement(&self) -> &BatchStatement {
        &self.batch.unsigned.statement
    }

    /// Its readings, in their order.
    pub fn readings(&self) -> &Readings {
        &self.batch.unsigned.readings
    }
}

impl BatchResult {
    /// The worst of what was found about the batch and by the evidence that counts for it.
    pub fn verdict(&self) -> Verdict {
        let own = match self.reasons.is_empty() {
            true => self.result.verdict(),
            false => Verdict::Contraindicated,
        };
        match self.evidence {
            BatchEvidence::Earlier(verdict) => verdict.max(own),
            BatchEvidence::Own | BatchEvidence::None => own,
        }
    }

    /// The batch's label and certificates, held against the policy.
    pub fn data(&self) -> &VerifiedData {
        self.result.data()
    }

    /// What is signed of it.
    pub fn statement(&self) -> &BatchStatement {
        &self.batch.unsigned.statement
    }

    /// Its readings, in their order.
    pub fn readings(&self) -> &Readings {
        &self.batch.unsigned.readings
    }

    /// The stream began anew with it.
    pub fn restarted(&self) -> bool {
        self.restarted
    }

    /// What its own evidence is worth.
    pub fn attestation(&self) -> Option<&EvidenceResult> {
        self.result.attestation()
    }

    /// Which evidence counts for it.
    pub fn evidence(&self) -> BatchEvidence {
        self.evidence
    }

    /// How many seconds before the batch was signed the evidence was asked for that counts for it, by the
    /// source's clock. That of an earlier batch is counted up to the latest time that any since then says.
    pub fn evidence_age(&self) -> Option<u64> {
        self.evidence_age
    }

    /// What was found about it.
    pub fn reasons(&self) -> impl Iterator<Item = &DataReason> {
        self.result.reasons().iter().chain(&self.reasons)
    }

    /// Takes the reading with this number out, with its proof.
    pub fn take(&self, number: u64) -> Option<ProvenReading> {
        self.batch.take(number, self.credentials.clone())
    }
}
