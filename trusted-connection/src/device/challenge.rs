//! Challenging a service.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use attestation::evidence::EvidenceError;
use attestation::{Binding, Nonce};
use ring::rand::{SecureRandom, SystemRandom};

use crate::wire::{Challenge, Failure, Response, WireError};

/// Why a challenge brought no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// No connection.
    #[error("{service} cannot be reached: is the service running there?")]
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

const CONNECT: Duration = Duration::from_secs(10);
/// Two TPMs must sign before the answer comes, one of them perhaps a slow chip.
const ANSWER: Duration = Duration::from_secs(60);

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
    let failed = |source: WireError| ChallengeError::Wire {
        service: service.to_owned(),
        source,
    };
    let mut stream = connect(service).map_err(|source| ChallengeError::Connect {
        service: service.to_owned(),
        source,
    })?;
    stream
        .set_read_timeout(Some(ANSWER))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER)))
        .map_err(|error| failed(error.into()))?;
    Challenge::new(nonce.clone(), Binding::None)
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

fn connect(service: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in service.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
