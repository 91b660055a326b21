//! The order of attestation on one connection, without any input or output: what each end owes the
//! other, and until when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::Nonce;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{ConnectionError, NoEvidence, ProtocolError};
use crate::message::{Accepted, Answer, Content, Demand, Request};
use crate::parties::{Appraisal, Verifier};

/// Evidence is not asked for again sooner after an answer than this.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// A peer that has no evidence just now is asked again after this, or sooner if its appraisal ends.
const AGAIN: Duration = Duration::from_secs(5);

/// No appraisal is relied on for longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What this end demands of its peer, round after round.
pub(crate) struct Demanding<R> {
    verifier: Arc<dyn Verifier<Result = R>>,
    sequence: u32,
    state: Round,
    /// Until when the last appraisal holds.
    valid_until: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Round {
    /// Nothing is asked for before this.
    Rest { until: Instant },
    /// The peer was asked.
    Asked { request: Request },
    /// Its evidence is being judged.
    Judging { request: Request },
}

impl<R> Demanding<R> {
    pub(crate) fn new(verifier: Arc<dyn Verifier<Result = R>>, now: Instant) -> Self {
        Self {
            verifier,
            sequence: 0,
            state: Round::Rest { until: now },
            valid_until: None,
        }
    }

    pub(crate) fn verifier(&self) -> &Arc<dyn Verifier<Result = R>> {
        &self.verifier
    }

    /// Whether the peer is accepted just now.
    pub(crate) fn is_met(&self, now: Instant) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }

    /// Whether an answer of the length of evidence may come.
    pub(crate) fn expects_evidence(&self) -> bool {
        matches!(self.state, Round::Asked { .. })
    }

    /// When something has to be done although no message came.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        match (&self.state, self.valid_until) {
            (Round::Rest { until }, Some(end)) => Some((*until).min(end)),
            (Round::Rest { until }, None) => Some(*until),
            (_, end) => end,
        }
    }

    /// The next request, if it is time for it; an error if the appraisal has ended.
    pub(crate) fn due(&mut self, now: Instant) -> Result<Option<Request>, ConnectionError> {
        if self.valid_until.is_some_and(|end| now >= end) {
            return Err(ConnectionError::AppraisalEnded);
        }
        match self.state {
            Round::Rest { until } if now >= until => {}
            _ => return Ok(None),
        }
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or(ConnectionError::AppraisalEnded)?;
        let request = Request {
            sequence: self.sequence,
            nonce: random_nonce()?,
        };
        self.state = Round::Asked {
            request: request.clone(),
        };
        Ok(Some(request))
    }

    /// The peer answered: evidence that is to be judged, for this request, or nothing.
    pub(crate) fn answered(
        &mut self,
        answer: Answer,
        now: Instant,
    ) -> Result<Option<(Request, Vec<u8>)>, ConnectionError> {
        let Round::Asked { request } = &self.state else {
            return Err(ProtocolError::OutOfTurn("an answer").into());
        };
        if answer.sequence != request.sequence {
            return Err(ProtocolError::OutOfTurn("an answer to another request").into());
        }
        match answer.content {
            Content::Evidence(evidence) => {
                let request = request.clone();
                self.state = Round::Judging {
                    request: request.clone(),
                };
                Ok(Some((request, evidence.into())))
            }
            Content::None(reason) => {
                let Some(end) = self.valid_until else {
                    return Err(ConnectionError::PeerHasNone(reason));
                };
                let left = end.saturating_duration_since(now);
                self.state = Round::Rest {
                    until: now + AGAIN.min(left / 4).max(SHORTEST_INTERVAL),
                };
                tracing::warn!(%reason, "the peer shows no new evidence; it is asked again");
                Ok(None)
            }
        }
    }

    /// The evidence was accepted.
    pub(crate) fn accepted(&mut self, appraisal: &Appraisal<R>, now: Instant) -> Option<Accepted> {
        let Round::Judging { request } = &self.state else {
            return None;
        };
        let valid_for = appraisal.valid_for.min(LONGEST);
        let accepted = Accepted {
            sequence: request.sequence,
            valid_for_ms: u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX),
        };
        self.valid_until = Some(now + valid_for);
        self.state = Round::Rest {
            until: now + (valid_for / 2).max(SHORTEST_INTERVAL),
        };
        Some(accepted)
    }
}

/// What the peer demands of this end.
#[derive(Debug)]
pub(crate) struct Demanded {
    demand: Demand,
    sequence: u32,
    state: Owed,
    accepted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// Nothing, since this time.
    Nothing { since: Option<Instant> },
    /// An answer to the last request.
    Answer,
}

impl Demanded {
    pub(crate) fn new(demand: Demand) -> Self {
        Self {
            demand,
            sequence: 0,
            state: Owed::Nothing { since: None },
            accepted: false,
        }
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Whether the peer has what it demanded.
    pub(crate) fn is_met(&self) -> bool {
        self.demand == Demand::Nothing || self.accepted
    }

    /// The peer asks for evidence.
    pub(crate) fn asked(&mut self, request: &Request, now: Instant) -> Result<(), ProtocolError> {
        if self.demand == Demand::Nothing {
            return Err(ProtocolError::OutOfTurn("a request without a demand"));
        }
        let Owed::Nothing { since } = self.state else {
            return Err(ProtocolError::OutOfTurn(
                "a request before the last was answered",
            ));
        };
        if Some(request.sequence) != self.sequence.checked_add(1) {
            return Err(ProtocolError::OutOfTurn("a request with another number"));
        }
        if since.is_some_and(|since| now < since + SHORTEST_INTERVAL / 2) {
            return Err(ProtocolError::TooOften);
        }
        self.sequence = request.sequence;
        self.state = Owed::Answer;
        Ok(())
    }

    /// The answer to the last request.
    pub(crate) fn answer(&mut self, evidence: Result<Vec<u8>, NoEvidence>, now: Instant) -> Answer {
        self.state = Owed::Nothing { since: Some(now) };
        Answer {
            sequence: self.sequence,
            content: match evidence {
                Ok(evidence) => Content::Evidence(evidence.into()),
                Err(reason) => Content::None(reason),
            },
        }
    }

    /// The peer accepted the last answer.
    pub(crate) fn peer_accepts(&mut self, accepted: &Accepted) -> Result<(), ProtocolError> {
        let answered = matches!(self.state, Owed::Nothing { since: Some(_) });
        if answered && accepted.sequence == self.sequence {
            self.accepted = true;
            Ok(())
        } else {
            Err(ProtocolError::OutOfTurn("an acceptance"))
        }
    }
}

fn random_nonce() -> Result<Nonce, ConnectionError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ConnectionError::Random)?;
    Nonce::new(bytes).map_err(|_| ConnectionError::Random)
}
