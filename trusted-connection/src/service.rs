//! The service: answers challenges with evidence.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use minicbor::bytes::ByteVec;

use crate::attester::{self, AttesterError, VmTpm};
use crate::wire::{Challenge, Failure, Response, WireError};

/// Challenges that may be under way at once; the TPM answers one after the other anyway.
const MAX_CONNECTIONS: usize = 16;
/// A device that is slower than this is not there.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers challenges with one VM's TPM.
pub struct Service<T> {
    tpm: Mutex<T>,
    event_log: PathBuf,
    connections: AtomicUsize,
}

impl<T: VmTpm + Send + 'static> Service<T> {
    /// A service that attests with this TPM and this event log.
    pub fn new(tpm: T, event_log: PathBuf) -> Self {
        Self {
            tpm: Mutex::new(tpm),
            event_log,
            connections: AtomicUsize::new(0),
        }
    }

    /// Serves until the listener fails.
    pub fn serve(self, listener: &TcpListener) -> io::Result<()> {
        let service = Arc::new(self);
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // The client is gone already: not our problem.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            if service.connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                service.connections.fetch_sub(1, Ordering::AcqRel);
                refuse(stream);
                continue;
            }
            let service = Arc::clone(&service);
            thread::spawn(move || {
                if let Err(error) = service.answer(stream) {
                    tracing::info!(%error, "a challenge was not answered");
                }
                service.connections.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    fn answer(&self, mut stream: TcpStream) -> Result<(), WireError> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let response = match Challenge::receive(&mut stream) {
            Ok(challenge) => self.evidence(&challenge),
            Err(error @ WireError::Io(_)) => return Err(error),
            Err(error) => {
                tracing::info!(%error, "not a challenge");
                Response::Failed(Failure::Challenge)
            }
        };
        response.send(&mut stream)
    }

    fn evidence(&self, challenge: &Challenge) -> Response {
        let mut tpm = self.tpm.lock().unwrap_or_else(PoisonError::into_inner);
        let collected = attester::collect(
            &mut *tpm,
            &self.event_log,
            &challenge.nonce,
            &challenge.binding,
        );
        match collected {
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
        }
    }
}

fn refuse(mut stream: TcpStream) {
    let _ = stream.set_write_timeout(Some(TIMEOUT));
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
