//! The order of attestation on one connection, without any input or output: what each end owes the
//! other, and until when. Times are those of [`clock::now`](crate::clock::now).

use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::Nonce;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{ConnectionError, NoEvidence, ProtocolError};
use crate::message::{Accepted, Answer, Content, Demand, Request};
use crate::parties::{Appraisal, Verifier};

/// Evidence is not asked for again sooner after an answer came than this.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(600);
/// Evidence may not be asked for again sooner after an answer was made than this, whatever time the
/// answer took: an honest peer waits longer.
const SHORTEST_ALLOWED: Duration = Duration::from_millis(500);
/// A peer that has no evidence just now is asked again after this, or sooner if its appraisal ends.
const AGAIN: Duration = Duration::from_secs(5);

/// No appraisal is relied on for longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What this end demands of its peer, round after round.
pub(crate) struct Demanding<R> {
    verifier: Arc<dyn Verifier<Result = R>>,
    /// What the peer was told: a verifier may demand something else of later connections.
    demand: Demand,
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
    Asked { request: Request, at: Instant },
    /// Its evidence is being judged.
    Judging { request: Request, asked: Instant },
}

impl<R: Clone + Send + Sync + 'static> Demanding<R> {
    pub(crate) fn new(verifier: Arc<dyn Verifier<Result = R>>, now: Instant) -> Self {
        Self {
            demand: verifier.demand(),
            verifier,
            sequence: 0,
            state: Round::Rest { until: now },
            valid_until: None,
        }
    }

    pub(crate) fn verifier(&self) -> &Arc<dyn Verifier<Result = R>> {
        &self.verifier
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Whether the peer is accepted just now.
    pub(crate) fn is_met(&self, now: Instant) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }

    /// Until when the last appraisal holds.
    pub(crate) fn valid_until(&self) -> Option<Instant> {
        self.valid_until
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
            at: now,
        };
        Ok(Some(request))
    }

    /// The peer answered: evidence that is to be judged, for this request, or nothing.
    pub(crate) fn answered(
        &mut self,
        answer: Answer,
        now: Instant,
    ) -> Result<Option<(Request, Vec<u8>)>, ConnectionError> {
        let Round::Asked { request, at } = &self.state else {
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
                    asked: *at,
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

    /// The evidence was accepted. It says how the peer is after it was asked and maybe not later, so it
    /// holds from then on: a peer that keeps it back gains nothing.
    pub(crate) fn accepted(&mut self, appraisal: &Appraisal<R>, now: Instant) -> Option<Accepted> {
        let Round::Judging { request, asked } = &self.state else {
            return None;
        };
        let valid_for = appraisal.valid_for.min(LONGEST);
        let valid_until = *asked + valid_for;
        let left = valid_until.saturating_duration_since(now);
        let accepted = Accepted {
            sequence: request.sequence,
            valid_for_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        self.state = Round::Rest {
            until: (*asked + valid_for / 2).max(now + SHORTEST_INTERVAL),
        };
        self.valid_until = Some(valid_until);
        (!left.is_zero()).then_some(accepted)
    }
}

/// What the peer demands of this end.
#[derive(Debug)]
pub(crate) struct Demanded {
    demand: Demand,
    sequence: u32,
    state: Owed,
    /// Number of the last request whose answer the peer accepted; 0 before.
    accepted: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// Nothing; the last answer was made then.
    Nothing { answered: Option<Instant> },
    /// An answer to the last request.
    Answer,
    /// The rest of the answer that was made then. Until the peer has taken it, it gets no other: what
    /// waits to be sent would have no bound.
    Rest { answered: Instant },
}

impl Demanded {
    pub(crate) fn new(demand: Demand) -> Self {
        Self {
            demand,
            sequence: 0,
            state: Owed::Nothing { answered: None },
            accepted: 0,
        }
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Whether the peer has what it demanded.
    pub(crate) fn is_met(&self) -> bool {
        self.demand == Demand::Nothing || self.accepted > 0
    }

    /// The peer asks for evidence.
    pub(crate) fn asked(&mut self, request: &Request, now: Instant) -> Result<(), ProtocolError> {
        if self.demand == Demand::Nothing {
            return Err(ProtocolError::OutOfTurn("a request without a demand"));
        }
        let Owed::Nothing { answered } = self.state else {
            return Err(ProtocolError::OutOfTurn(
                "a request before the last answer was taken",
            ));
        };
        if Some(request.sequence) != self.sequence.checked_add(1) {
            return Err(ProtocolError::OutOfTurn("a request with another number"));
        }
        if answered.is_some_and(|answered| now < answered + SHORTEST_ALLOWED) {
            return Err(ProtocolError::TooOften);
        }
        self.sequence = request.sequence;
        self.state = Owed::Answer;
        Ok(())
    }

    /// The answer to the last request, which has to be sent now.
    pub(crate) fn answer(&mut self, evidence: Result<Vec<u8>, NoEvidence>, now: Instant) -> Answer {
        self.state = Owed::Rest { answered: now };
        Answer {
            sequence: self.sequence,
            content: match evidence {
                Ok(evidence) => Content::Evidence(evidence.into()),
                Err(reason) => Content::None(reason),
            },
        }
    }

    /// The last part of the answer was handed to TLS.
    pub(crate) fn answer_was_sent(&mut self) {
        if let Owed::Rest { answered } = self.state {
            self.state = Owed::Nothing {
                answered: Some(answered),
            };
        }
    }

    /// The peer accepted the last answer.
    pub(crate) fn peer_accepts(&mut self, accepted: &Accepted) -> Result<(), ProtocolError> {
        let answered = matches!(self.state, Owed::Nothing { answered: Some(_) });
        if answered && accepted.sequence == self.sequence && self.accepted < self.sequence {
            self.accepted = self.sequence;
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use attestation::Binding;
    use cert_chain::Digest32;

    use super::*;
    use crate::error::EvidenceRefused;
    use crate::message::Format;
    use crate::parties::Peer;

    struct Never;

    impl Verifier for Never {
        type Result = ();

        fn demand(&self) -> Demand {
            Demand::Evidence {
                formats: vec![Format::Vrot],
                policy: Digest32::new([0; 32]),
            }
        }

        fn appraise(
            &self,
            _: &[u8],
            _: &Nonce,
            _: &Binding,
            _: &Peer,
        ) -> Result<Appraisal<()>, EvidenceRefused> {
            Err(EvidenceRefused {
                reason: "it is not asked here".to_owned(),
            })
        }
    }

    #[test]
    fn an_appraisal_counts_from_when_evidence_was_asked_for_and_the_peer_is_told_what_is_left() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut demanding = Demanding::new(Arc::new(Never), begin);
        let request = demanding.due(begin).unwrap().unwrap();
        let answer = Answer {
            sequence: request.sequence,
            content: Content::Evidence(vec![1].into()),
        };
        assert!(demanding.answered(answer, at(3)).unwrap().is_some());
        let appraisal = Appraisal {
            result: (),
            valid_for: Duration::from_secs(10),
        };
        let accepted = demanding.accepted(&appraisal, at(4)).unwrap();
        assert_eq!(accepted.valid_for_ms, 6_000);
        assert_eq!(demanding.next_time(), Some(at(5)));
        assert!(demanding.is_met(at(9)));
        assert!(!demanding.is_met(at(10)));
        assert!(demanding.due(at(10)).is_err());
    }

    #[test]
    fn no_request_is_answered_before_the_last_answer_was_sent_or_soon_after_it() {
        let begin = Instant::now();
        let request = |sequence| Request {
            sequence,
            nonce: random_nonce().unwrap(),
        };
        let mut theirs = Demanded::new(Never.demand());
        theirs.asked(&request(1), begin).unwrap();
        theirs.answer(Ok(vec![1]), begin);
        let later = begin + Duration::from_secs(60);
        let too_soon = begin + Duration::from_millis(499);
        assert!(matches!(
            theirs.asked(&request(2), later),
            Err(ProtocolError::OutOfTurn(_))
        ));
        theirs.answer_was_sent();
        assert_eq!(
            theirs.asked(&request(2), too_soon),
            Err(ProtocolError::TooOften)
        );
        assert_eq!(theirs.asked(&request(2), later), Ok(()));
    }
}
