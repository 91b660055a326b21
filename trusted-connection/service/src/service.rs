//! The service: answers challenges with evidence.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;
use trusted_connection::deadline::{TimedStream, left};
use trusted_connection::wire::{Challenge, Failure, Response, WireError};

use crate::attester::{self, AttesterError, VmTpm};
use crate::peer::Peer;
use crate::places::{Place, Places};
use crate::turns::Turns;

/// A refusal fits into every socket's buffer.
const REFUSAL: Duration = Duration::from_millis(100);

/// How long a device is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Until its challenge is there as a whole.
    challenge: Duration,
    /// Until the answer was taken as a whole; no device waits longer for it.
    exchange: Duration,
}

const PATIENCE: Patience = Patience {
    challenge: Duration::from_secs(10),
    exchange: Duration::from_secs(60),
};

/// Answers challenges with one VM's TPM.
pub struct Service<T> {
    tpm: Mutex<T>,
    event_log: PathBuf,
    places: Arc<Places>,
    turns: Turns,
    patience: Patience,
}

impl<T: VmTpm + Send + 'static> Service<T> {
    /// A service that attests with this TPM and this event log.
    pub fn new(tpm: T, event_log: PathBuf) -> Self {
        Self {
            tpm: Mutex::new(tpm),
            event_log,
            places: Arc::default(),
            turns: Turns::default(),
            patience: PATIENCE,
        }
    }

    /// Serves until the listener fails.
    pub fn serve(self, listener: &TcpListener) -> io::Result<()> {
        let service = Arc::new(self);
        loop {
            let (stream, peer) = match listener.accept() {
                Ok((stream, address)) => (stream, Peer::from(address.ip())),
                // The client is gone already: not our problem.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let Some(place) = service.places.take(peer, &stream) else {
                refuse(stream);
                continue;
            };
            let service = Arc::clone(&service);
            // The kernel may have no thread to spare: then the connection is closed with it.
            let started = thread::Builder::new().spawn(move || {
                if let Err(error) = service.answer(stream, peer, &place) {
                    tracing::info!(%error, "a challenge was not answered");
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "a challenge is not answered");
            }
        }
    }

    fn answer(&self, stream: TcpStream, peer: Peer, place: &Place) -> Result<(), WireError> {
        let begin = Instant::now();
        let mut stream = TimedStream::until(stream, begin + self.patience.challenge);
        let received = Challenge::receive(&mut stream);
        place.is_no_longer_silent();
        let deadline = begin + self.patience.exchange;
        stream.extend(deadline);
        let response = match received {
            Ok(challenge) => self.evidence(&challenge, peer, deadline)?,
            Err(error @ WireError::Io(_)) => return Err(error),
            Err(error) => {
                tracing::info!(%error, "not a challenge");
                Response::Failed(Failure::Challenge)
            }
        };
        response.send(&mut stream)
    }

    /// Evidence for a challenge, unless others took the TPM for so long that its device is gone.
    fn evidence(
        &self,
        challenge: &Challenge,
        peer: Peer,
        deadline: Instant,
    ) -> io::Result<Response> {
        let Some(_turn) = self.turns.wait(peer, deadline) else {
            return Ok(Response::Failed(Failure::Busy));
        };
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        left(deadline)?;
        let collected = attester::collect(&mut *tpm, &self.event_log, &challenge.nonce);
        Ok(match collected {
            Ok(evidence) => {
                tracing::info!(nonce = %challenge.nonce, "a challenge was answered");
                Response::Evidence(ByteVec::from(evidence.to_cbor()))
            }
            Err(error) => {
                let failure = match error {
                    AttesterError::Host(_) | AttesterError::HostLayer(_) => Failure::Host,
                    _ => Failure::Tpm,
                };
                tracing::error!(error = %chain(&error), "no evidence");
                Response::Failed(failure)
            }
        })
    }
}

/// Says so without waiting: the listener serves others meanwhile.
fn refuse(stream: TcpStream) {
    let mut stream = TimedStream::until(stream, Instant::now() + REFUSAL);
    let _ = Response::Failed(Failure::Busy).send(&mut stream);
}

/// An error with everything that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::{Read, Write};

    use attestation::RequestDigest;
    use cert_chain::{Digest32, HashAlgorithm, PcrSelection};

    use super::*;
    use crate::attester::SignedQuote;

    /// Nobody gets as far as this TPM.
    struct Untouched;

    impl VmTpm for Untouched {
        fn vik_public(&mut self) -> Result<Vec<u8>, AttesterError> {
            unreachable!("there was no challenge")
        }

        fn certificates(&mut self) -> Result<Vec<Vec<u8>>, AttesterError> {
            unreachable!("there was no challenge")
        }

        fn quoted(&self) -> PcrSelection {
            unreachable!("the event log comes first")
        }

        fn banks(&mut self) -> Result<Vec<HashAlgorithm>, AttesterError> {
            unreachable!("the event log comes first")
        }

        fn quote(&mut self, _: HashAlgorithm, _: &Digest32) -> Result<SignedQuote, AttesterError> {
            unreachable!("there was no challenge")
        }

        fn host_layer(&mut self, _: &RequestDigest) -> Result<Vec<u8>, AttesterError> {
            unreachable!("there was no challenge")
        }
    }

    fn service(patience: Patience) -> Service<Untouched> {
        Service {
            patience,
            ..Service::new(Untouched, PathBuf::new())
        }
    }

    fn answer(service: &Service<Untouched>, stream: TcpStream) -> Result<(), WireError> {
        let peer = Peer::from(stream.peer_addr().unwrap().ip());
        let place = service.places.take(peer, &stream).unwrap();
        service.answer(stream, peer, &place)
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let device = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (device, listener.accept().unwrap().0)
    }

    fn timed_out(outcome: Result<(), WireError>) -> bool {
        matches!(outcome, Err(WireError::Io(error)) if error.kind() == io::ErrorKind::TimedOut)
    }

    /// One byte now and then keeps every single read in time.
    #[test]
    fn a_device_that_drips_its_challenge_is_given_up() {
        let (mut device, ours) = connection();
        let dripping = thread::spawn(move || {
            let mut challenge = 250u32.to_be_bytes().into_iter().chain([0; 250]);
            while let Some(byte) = challenge.next()
                && device.write_all(&[byte]).is_ok()
            {
                thread::sleep(Duration::from_millis(5));
            }
            challenge.count()
        });
        let patience = Patience {
            challenge: Duration::from_millis(200),
            exchange: Duration::from_secs(600),
        };
        assert!(timed_out(answer(&service(patience), ours)));
        dripping.join().unwrap();
    }

    #[test]
    fn a_device_that_takes_no_answer_is_given_up() {
        let (mut device, ours) = connection();
        let patience = Patience {
            challenge: Duration::from_secs(600),
            exchange: Duration::ZERO,
        };
        // No challenge at all, for which there would be an answer.
        device.write_all(&[0xff; 4]).unwrap();
        assert!(timed_out(answer(&service(patience), ours)));
        assert_eq!(device.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_log_that_does_not_end_is_not_read_to_its_end() {
        let nonce = attestation::Nonce::new([7; 32]).unwrap();
        let endless = std::path::Path::new("/dev/zero");
        let collected = attester::collect(&mut Untouched, endless, &nonce);
        assert!(matches!(
            collected,
            Err(AttesterError::EventLog { source, .. })
                if source.kind() == io::ErrorKind::FileTooLarge
        ));
    }

    #[test]
    fn nonsense_is_answered_and_the_tpm_left_alone() {
        let (mut device, ours) = connection();
        device.write_all(&[0xff; 4]).unwrap();
        answer(&service(PATIENCE), ours).unwrap();
        let response = Response::receive(&mut device).unwrap();
        assert_eq!(response, Response::Failed(Failure::Challenge));
    }
}
