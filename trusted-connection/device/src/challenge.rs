//! Challenging a service.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use attestation::Nonce;
use attestation::evidence::EvidenceError;
use ring::rand::{SecureRandom, SystemRandom};

use trusted_connection::deadline::{TimedStream, left};
use trusted_connection::wire::{Challenge, Failure, Response, WireError};

/// Why a challenge brought no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// No connection.
    #[error("{service} cannot be reached: {}", why_unreachable(source))]
    Connect {
        /// Host and port as given.
        service: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came back is no evidence.
    #[error("{service} answered with something that is no evidence")]
    Evidence {
        /// Host and port as given.
        service: String,
        /// Why.
        #[source]
        source: EvidenceError,
    },
    /// The service has none to give.
    #[error("{service} has no evidence to give: {failure}")]
    Failed {
        /// Host and port as given.
        service: String,
        /// What it said.
        failure: Failure,
    },
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The conversation failed.
    #[error("{service} did not answer the challenge")]
    Wire {
        /// Host and port as given.
        service: String,
        /// Why.
        #[source]
        source: WireError,
    },
}

/// For one address of the service.
const CONNECT: Duration = Duration::from_secs(10);
/// For everything from the first attempt to connect to the last byte of the answer. Two TPMs must
/// sign before it comes, one of them perhaps a slow chip.
const EXCHANGE: Duration = Duration::from_secs(60);

/// Between two attempts at a service that is busy.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// 32 random bytes.
pub fn fresh_nonce() -> Result<Nonce, ChallengeError> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ChallengeError::Random)?;
    Nonce::new(bytes).map_err(|_| ChallengeError::Random)
}

/// Asks `service` (`HOST:PORT`) for evidence that answers `nonce`; the answer is not verified.
pub fn challenge(service: &str, nonce: &Nonce) -> Result<Vec<u8>, ChallengeError> {
    challenge_within(EXCHANGE, service, nonce)
}

fn challenge_within(
    patience: Duration,
    service: &str,
    nonce: &Nonce,
) -> Result<Vec<u8>, ChallengeError> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        match ask(service, nonce, deadline) {
            // Others ask as well; the next attempt may find room.
            Err(ChallengeError::Failed {
                failure: Failure::Busy,
                ..
            }) if left(deadline).is_ok_and(|left| left > pause) => {
                thread::sleep(pause);
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn ask(service: &str, nonce: &Nonce, deadline: Instant) -> Result<Vec<u8>, ChallengeError> {
    let failed = |source: WireError| ChallengeError::Wire {
        service: service.to_owned(),
        source,
    };
    let stream = connect(service, deadline).map_err(|source| ChallengeError::Connect {
        service: service.to_owned(),
        source,
    })?;
    let mut stream = TimedStream::until(stream, deadline);
    Challenge::new(nonce.clone())
        .send(&mut stream)
        .map_err(failed)?;
    match Response::receive(&mut stream).map_err(failed)? {
        Response::Evidence(evidence) => Ok(evidence.into()),
        Response::Failed(failure) => Err(ChallengeError::Failed {
            service: service.to_owned(),
            failure,
        }),
    }
}

/// What a failed connection means, and what to do (connect(2), getaddrinfo(3)).
fn why_unreachable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there; is the port right, and vrot-service running?"
        }
        io::ErrorKind::TimedOut => "no answer; is a firewall in between, or the VM down?",
        io::ErrorKind::InvalidInput => "write it as HOST:PORT",
        _ => "look at the name, the network and the VM",
    }
}

fn connect(service: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in service.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?.min(CONNECT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// One byte now and then keeps every single read in time.
    #[test]
    fn a_service_that_drips_its_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap().to_string();
        let dripping = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            // It says that a long answer follows, and goes on until nobody listens.
            let answer = [500_000u32.to_be_bytes().as_slice(), &[0x82; 400]].concat();
            for byte in answer {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let nonce = Nonce::new([7; 32]).unwrap();
        let outcome = challenge_within(Duration::from_millis(300), &service, &nonce);
        assert!(
            matches!(
                &outcome,
                Err(ChallengeError::Wire { source: WireError::Io(error), .. })
                    if error.kind() == io::ErrorKind::TimedOut
            ),
            "{outcome:?}"
        );
        dripping.join().unwrap();
    }
}
