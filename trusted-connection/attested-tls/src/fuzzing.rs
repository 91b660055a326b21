//! Entry points for fuzzers: everything that reads bytes of a peer once TLS is out of the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::{Binding, Nonce};
use bytes::BytesMut;
use cert_chain::Digest32;

use crate::error::{ConnectionError, EvidenceRefused, ProtocolError};
use crate::frame::{Frame, HEADER, MAX_BODY};
use crate::message::{Demand, Format, Message};
use crate::parties::{Appraisal, Peer, Verifier};
use crate::rounds::{Demanded, Demanding};

/// The evidence that is accepted here.
pub const EVIDENCE: &[u8] = b"evidence";

/// Frames, in pieces of as many bytes as the first byte says; how many there are.
///
/// # Panics
///
/// If what is understood depends on the pieces, or a frame is not as long as its bytes.
pub fn frames(bytes: &[u8]) -> usize {
    let Some((piece, bytes)) = bytes.split_first() else {
        return 0;
    };
    let piece = usize::from(*piece).max(1);
    let in_pieces = taken(bytes.chunks(piece));
    assert_eq!(
        in_pieces,
        taken([bytes].into_iter()),
        "in pieces of {piece}"
    );
    let length: usize = in_pieces.iter().map(length).sum();
    assert!(length <= bytes.len(), "{length} bytes of {}", bytes.len());
    in_pieces.len()
}

/// The frames of a stream, up to where it makes no sense.
fn taken<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> Vec<Frame> {
    let (mut received, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match Frame::take(&mut received) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}

fn length(frame: &Frame) -> usize {
    let body = match frame {
        Frame::Data(body) | Frame::ControlPart(body) | Frame::ControlEnd(body) => body.len(),
        Frame::End => 0,
        Frame::Window(_) => 4,
        Frame::Close(_) => 1,
    };
    assert!(body <= MAX_BODY, "a frame of {body} bytes");
    HEADER + body
}

/// The control messages in frames, one second apart, and what they do to an end that demands evidence
/// and of which the peer demands some; how many the end takes. Each other frame is a second in which
/// nothing happens.
///
/// # Panics
///
/// If a message has two encodings, the peer is accepted without evidence, or it is taken to accept this
/// end without having got any.
pub fn messages(bytes: &[u8]) -> usize {
    let mut end = End::new();
    let mut message = Vec::new();
    let longest = Accepting.demand().longest_answer();
    let mut handled = 0;
    for frame in taken([bytes].into_iter()) {
        let (Frame::ControlPart(part) | Frame::ControlEnd(part)) = &frame else {
            end.now += STEP;
            continue;
        };
        message.extend_from_slice(part);
        if message.len() > longest {
            return handled;
        }
        if matches!(frame, Frame::ControlPart(_)) {
            continue;
        }
        let Ok(whole) = Message::from_bytes(&message) else {
            return handled;
        };
        assert_eq!(whole.to_bytes(), message, "there is one encoding only");
        message.clear();
        if end.handle(whole).is_err() {
            return handled;
        }
        handled += 1;
    }
    handled
}

const STEP: Duration = Duration::from_secs(1);

struct End {
    now: Instant,
    ours: Demanding<()>,
    theirs: Option<Demanded>,
    /// Whether the peer showed evidence that was accepted.
    was_shown: bool,
    /// Whether this end showed any.
    has_shown: bool,
}

struct Accepting;

impl Verifier for Accepting {
    type Result = ();

    fn demand(&self) -> Demand {
        Demand::Evidence {
            formats: vec![Format::Vrot],
            policy: Digest32::new([0; 32]),
        }
    }

    fn appraise(
        &self,
        evidence: &[u8],
        _: &Nonce,
        _: &Binding,
        _: &Peer,
    ) -> Result<Appraisal<()>, EvidenceRefused> {
        Err(EvidenceRefused {
            reason: format!("{} bytes: it is asked nothing here", evidence.len()),
        })
    }
}

impl End {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            ours: Demanding::new(Arc::new(Accepting), now),
            theirs: None,
            was_shown: false,
            has_shown: false,
        }
    }

    /// As the task of a connection does.
    fn handle(&mut self, message: Message) -> Result<(), ConnectionError> {
        self.now += STEP;
        self.ours.due(self.now)?;
        let name = message.name();
        match (message, &mut self.theirs) {
            (Message::Hello(hello), theirs @ None) => *theirs = Some(Demanded::new(hello.demand)),
            (Message::Request(request), Some(theirs)) => {
                theirs.asked(&request, self.now)?;
                theirs.answer(Ok(EVIDENCE.to_vec()), self.now);
                theirs.answer_was_sent();
                self.has_shown = true;
            }
            (Message::Answer(answer), Some(_)) => {
                let answered = self.ours.answered(answer, self.now)?;
                if answered.is_some_and(|(_, evidence)| evidence == EVIDENCE) {
                    let appraisal = Appraisal {
                        result: (),
                        valid_for: 6 * STEP,
                    };
                    self.ours.accepted(&appraisal, self.now);
                    self.was_shown = true;
                }
            }
            (Message::Accepted(accepted), Some(theirs)) => theirs.peer_accepts(&accepted)?,
            _ => return Err(ProtocolError::OutOfTurn(name).into()),
        }
        assert!(self.was_shown || !self.ours.is_met(self.now));
        let demands = |theirs: &Demanded| *theirs.demand() != Demand::Nothing;
        if let Some(theirs) = self.theirs.as_ref().filter(|theirs| demands(theirs)) {
            assert!(self.has_shown || !theirs.is_met());
        }
        Ok(())
    }
}
