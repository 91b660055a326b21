//! The daemon: requests on a socket, one shown at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::Duration;

use confirmation::{Confirmation, Shown};
use printable::WithCauses;
use program_output::console::complain;
use rustls_pki_types::UnixTime;

use crate::dialogue::{self, DialogueError, End};
use crate::key_file::KeyFile;
use crate::request::{Answer, MAX_REQUEST, Request};
use crate::terminal::{Terminal, Tty};
use crate::tpm::ConfirmTpm;
use crate::virtual_terminal::{InFront, number};

/// What the daemon has: one terminal, one key, one certificate.
pub(crate) struct Server {
    pub(crate) terminal: Mutex<Tty>,
    pub(crate) tpm: String,
    pub(crate) key: KeyFile,
    pub(crate) certificate: Vec<u8>,
}

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
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        BufReader::new((&stream).take(MAX_REQUEST)).read_until(b'\n', &mut line)?;
        let answer = match Request::parse(&line) {
            Ok(request) => match self.show(&request, &stream) {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) => Answer::Refused {
                reason: error.to_string(),
            },
        };
        let answer = serde_json::to_string(&answer).map_err(io::Error::other)?;
        (&stream).write_all(format!("{answer}\n").as_bytes())
    }

    /// The answer; `None` if nobody waits for it.
    fn show(&self, request: &Request, asker: &UnixStream) -> Option<Answer> {
        let mut terminal = match self.terminal.try_lock() {
            Ok(terminal) => terminal,
            Err(TryLockError::WouldBlock) => return Some(Answer::Busy),
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
        };
        let ended = self.ask(&mut terminal, request, asker);
        let _ = terminal.show(IDLE);
        drop(terminal);
        Some(match ended {
            Ok(End::Confirmed(confirmation)) => Answer::Confirmed {
                confirmation: hex::encode(confirmation.to_cbor()),
            },
            Ok(End::Declined) => Answer::Declined,
            Ok(End::AskerGone) => return None,
            Ok(End::Late) => Answer::Refused {
                reason: "nobody answered in time".to_owned(),
            },
            Err(error) => {
                let reason = WithCauses(&error).to_string();
                complain(format_args!("a request was not led to its end: {reason}"));
                Answer::Refused { reason }
            }
        })
    }

    fn ask(
        &self,
        terminal: &mut Tty,
        request: &Request,
        asker: &UnixStream,
    ) -> Result<End<Confirmation>, DialogueError> {
        let device = terminal.device().try_clone()?;
        let _in_front = match number(&device)? {
            Some(number) => Some(InFront::bring(&device, number)?),
            // The command line says whether that is allowed.
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
                certificate: self.certificate.clone().into(),
            })
        })
    }

    fn idle(&self) {
        if let Ok(mut terminal) = self.terminal.lock() {
            let _ = terminal.show(IDLE);
        }
    }
}
