//! The service: answers challenges with evidence.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use attestation::Binding;
use connection_proxy::{Accepted, Handler, Limits, Place, Stop, serve};
use minicbor::bytes::ByteVec;
use printable::WithCauses;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use trusted_connection::deadline::{TimedStream, left};
use trusted_connection::wire::{Challenge, Failure, Response, WireError};

use crate::attester::AttesterError;
use crate::attester::batches::Batches;
use crate::attester::quoting::EvidenceRequest;

/// How many connections there may be at a time; each has a thread.
pub const LIMITS: Limits = Limits {
    connections: 64,
    of_a_peer: 8,
};

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

/// Answers challenges that come in the clear with evidence of one VM.
#[derive(Clone)]
pub struct Service {
    batches: Arc<Batches>,
    patience: Patience,
}

impl Service {
    /// A service that gets evidence from this attester.
    pub fn new(batches: Arc<Batches>) -> Self {
        Self {
            batches,
            patience: PATIENCE,
        }
    }

    /// Serves until it is told to stop.
    pub async fn serve(self, listener: TcpListener, stop: &Stop) {
        serve(listener, LIMITS, stop, Arc::new(self)).await;
    }

    fn answer(&self, stream: TcpStream, place: &mut Place) -> Result<(), WireError> {
        let begin = Instant::now();
        let mut stream = TimedStream::until(stream, begin + self.patience.challenge);
        let received = Challenge::receive(&mut stream);
        place.keep();
        let deadline = begin + self.patience.exchange;
        stream.extend(deadline);
        let response = match received {
            Ok(challenge) => self.evidence(challenge, deadline)?,
            Err(error @ WireError::Io(_)) => return Err(error),
            Err(error) => {
                tracing::info!(%error, "not a challenge");
                Response::Failed(Failure::Challenge)
            }
        };
        response.send(&mut stream)
    }

    /// Evidence for a challenge, unless that takes so long that its device is gone.
    fn evidence(&self, challenge: Challenge, deadline: Instant) -> io::Result<Response> {
        let (sender, receiver) = sync_channel(1);
        let request = EvidenceRequest {
            nonce: challenge.nonce,
            // Whoever asks in the clear may be a relay, whose own connection is nobody else's matter.
            binding: Binding::None,
            tls_key: None,
        };
        // Who does not wait any more drops the receiver, and needs no answer.
        let reply = move |outcome| drop(sender.send(outcome));
        if self.batches.request(request, reply).is_err() {
            return Ok(Response::Failed(Failure::Busy));
        }
        Ok(match receiver.recv_timeout(left(deadline)?) {
            Ok(Ok(evidence)) => Response::Evidence(ByteVec::from(evidence)),
            Ok(Err(error)) => {
                tracing::error!(error = %WithCauses(&*error), "no evidence");
                Response::Failed(match *error {
                    AttesterError::Host(_) | AttesterError::HostLayer(_) => Failure::Host,
                    _ => Failure::Tpm,
                })
            }
            Err(RecvTimeoutError::Timeout) => Response::Failed(Failure::Busy),
            Err(RecvTimeoutError::Disconnected) => Response::Failed(Failure::Host),
        })
    }
}

impl Handler for Service {
    async fn handle(&self, connection: Accepted) {
        let mut place = connection.place;
        let blocking = connection.stream.into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok((EndOnDrop(stream.try_clone()?), stream))
        });
        let (_ends, stream) = match blocking {
            Ok(streams) => streams,
            Err(error) => {
                tracing::warn!(%error, "a challenge is not answered");
                return;
            }
        };
        let service = self.clone();
        let span = tracing::Span::current();
        let answered =
            spawn_blocking(move || span.in_scope(|| service.answer(stream, &mut place))).await;
        match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "a challenge was not answered"),
            Err(error) => tracing::error!(%error, "a challenge was not answered"),
        }
    }

    fn refuse(&self, stream: tokio::net::TcpStream) {
        let mut busy = Vec::new();
        // It fits into every socket's buffer; and the peer may be gone.
        let _ = Response::Failed(Failure::Busy).send(&mut busy);
        let _ = stream.try_write(&busy);
    }
}

/// Ends a connection, and with that the thread that reads it.
struct EndOnDrop(TcpStream);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use attestation::RequestDigest;
    use cert_chain::{Digest32, HashAlgorithm, PcrSelection};
    use connection_proxy::{Peer, Places};

    use super::*;
    use crate::attester::quoting::Quoter;
    use crate::attester::{Host, HostEvidenceError, SignedQuote, VmTpm};

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
    }

    impl Host for Untouched {
        fn layer(&self, _: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError> {
            unreachable!("there was no challenge")
        }
    }

    fn service(patience: Patience) -> Service {
        let batches =
            Batches::start(Untouched, Arc::new(Untouched), std::path::PathBuf::new()).unwrap();
        Service {
            patience,
            ..Service::new(Arc::new(batches))
        }
    }

    fn answer(service: &Service, stream: TcpStream) -> Result<(), WireError> {
        let peer = Peer::from(stream.peer_addr().unwrap().ip());
        let mut place = Places::new(LIMITS).take(peer).unwrap();
        service.answer(stream, &mut place)
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
        let request = EvidenceRequest {
            nonce: attestation::Nonce::new([7; 32]).unwrap(),
            binding: Binding::None,
            tls_key: None,
        };
        let endless = std::path::PathBuf::from("/dev/zero");
        let collected = Quoter::new(Untouched, endless.into()).quote(vec![request]);
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
