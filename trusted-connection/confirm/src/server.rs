//! The daemon: requests on a socket, one shown at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use confirmation::{Confirmation, Shown};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use printable::WithCauses;
use program_output::console::complain;
use rustls_pki_types::UnixTime;
use tss_context::TpmAddress;

use crate::device_certificate::DeviceCertificate;
use crate::dialogue::{self, DialogueError, End};
use crate::font::Font;
use crate::key_file::KeyFile;
use crate::request::{Answer, MAX_REQUEST, Request};
use crate::terminal::{Terminal, Tty};
use crate::tpm::ConfirmTpm;
use crate::virtual_terminal::{InFront, SwitchLock, number};

/// What the daemon has: one terminal, one key, one certificate.
pub(crate) struct Server {
    pub(crate) terminal: Mutex<Tty>,
    /// Whether a request is being shown.
    pub(crate) is_asking: AtomicBool,
    pub(crate) lock: SwitchLock,
    pub(crate) tpm: TpmAddress,
    pub(crate) key: KeyFile,
    pub(crate) certificate: DeviceCertificate,
}

/// The turn of one request.
struct Turn<'a>(&'a AtomicBool);

/// Connections at a time; of those that ask while one is shown, each is told so at once.
const MOST_CONNECTIONS: usize = 16;
/// For a request to come in, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
const IDLE: &str = "vrot-confirm: nothing to confirm.";

impl Server {
    /// Serves for ever.
    pub(crate) fn serve(&self, listener: &UnixListener) -> io::Result<()> {
        let open = AtomicUsize::new(0);
        self.idle();
        thread::scope(|scope| {
            for stream in listener.incoming() {
                let stream = stream?;
                if open.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
                    open.fetch_sub(1, Ordering::Relaxed);
                    // Nobody waits for those that there are: it is told so, if it can be told at once.
                    let _ = stream
                        .set_nonblocking(true)
                        .and_then(|()| say(&stream, &Answer::Busy));
                    continue;
                }
                scope.spawn(|| {
                    // Who is gone is told nothing.
                    let _ = self.handle(stream);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Ok(())
        })
    }

    fn handle(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let line = line(&stream, Instant::now() + PATIENCE)?;
        let answer = match Request::parse(&line) {
            Ok(request) => match self.show(&request, &stream) {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) => Answer::Refused {
                reason: error.to_string(),
            },
        };
        say(&stream, &answer)
    }

    /// The answer; `None` if nobody waits for it.
    fn show(&self, request: &Request, asker: &UnixStream) -> Option<Answer> {
        let Some(turn) = Turn::take(&self.is_asking) else {
            return Some(Answer::Busy);
        };
        let mut terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ask(&mut terminal, request, asker);
        // Before the terminal says so: who sees that may ask.
        drop(turn);
        let _ = terminal.show(IDLE);
        drop(terminal);
        let (said, answer) = match ended {
            Ok(End::Confirmed(confirmation)) => {
                let confirmation = hex::encode(confirmation.to_cbor());
                ("confirmed", Some(Answer::Confirmed { confirmation }))
            }
            Ok(End::Declined) => ("declined", Some(Answer::Declined)),
            Ok(End::AskerGone) => ("taken back", None),
            Ok(End::Late) => refused("nobody answered in time".to_owned()),
            Err(error) => refused(WithCauses(&error).to_string()),
        };
        log(request, asker, said, answer.as_ref());
        answer
    }

    fn ask(
        &self,
        terminal: &mut Tty,
        request: &Request,
        asker: &UnixStream,
    ) -> Result<End<Confirmation>, DialogueError> {
        self.certificate.check(UnixTime::now())?;
        let device = terminal.device().try_clone()?;
        let _in_front = match number(&device)? {
            Some(number) => {
                Font::of(&device)?.check(&request.text)?;
                Some(InFront::bring(&device, number, &self.lock)?)
            }
            // The command line says whether that is allowed. What such a terminal shows is not known here.
            None => None,
        };
        dialogue::ask(terminal, request, Some(asker.as_fd()), |rendering, pin| {
            let now = UnixTime::now().as_secs();
            let shown = Shown::new(&request.service, &request.nonce, rendering, now);
            let mut tpm = ConfirmTpm::open(&self.tpm)?;
            let signature = tpm.sign(&self.key, pin, &shown.to_be_signed())?;
            Ok(Confirmation {
                signed: shown.signed(&signature).into(),
                key: self.key.statement.clone(),
                identity_key: self.key.identity_key.clone(),
                certificate: self.certificate.der().to_vec().into(),
            })
        })
    }

    fn idle(&self) {
        if let Ok(mut terminal) = self.terminal.lock() {
            let _ = terminal.show(IDLE);
        }
    }
}

impl<'a> Turn<'a> {
    fn take(is_asking: &'a AtomicBool) -> Option<Self> {
        (!is_asking.swap(true, Ordering::AcqRel)).then(|| Self(is_asking))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A connection that is read until a time, however little comes at a time.
struct Until<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut from = self.stream;
        from.read(to)
    }
}

/// What comes until this time: a line, or less.
fn line(stream: &UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(Until { stream, end }.take(MAX_REQUEST)).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn refused(reason: String) -> (&'static str, Option<Answer>) {
    ("not led to its end", Some(Answer::Refused { reason }))
}

/// For whoever looks into who asked what.
fn log(request: &Request, asker: &UnixStream, said: &str, answer: Option<&Answer>) {
    let user = match getsockopt(asker, PeerCredentials) {
        Ok(peer) => peer.uid().to_string(),
        Err(_) => "?".to_owned(),
    };
    let reason = match answer {
        Some(Answer::Refused { reason }) => format!(": {reason}"),
        _ => String::new(),
    };
    complain(format_args!(
        "a request of {}, asked by user {user} with nonce {}, was {said}{reason}",
        request.service, request.nonce
    ));
}

fn say(to: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut to = to;
    let answer = serde_json::to_string(answer).map_err(io::Error::other)?;
    to.write_all(format!("{answer}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_trickles_in_is_cut_off() -> io::Result<()> {
        let (mut asker, stream) = UnixStream::pair()?;
        let trickle = thread::spawn(move || {
            // Until nobody reads any more.
            while asker.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let end = Instant::now() + Duration::from_millis(200);
        let read = line(&stream, end);
        drop(stream);
        assert!(read.is_err() && Instant::now() >= end);
        trickle.join().map_err(|_| io::Error::other("it panicked"))
    }
}
