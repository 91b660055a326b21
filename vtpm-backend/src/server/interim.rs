//! What a VMM is told while the TPM still works on a command of its guest.
//!
//! The TPM executes one command after the other, and the loop waits for it. A thread beside it
//! looks at a command that can take long, and at nothing else:
//!
//! * A VMM that wants the command given up (`CMD_CANCEL_TPM_CMD`) is heard at once. libtpms looks
//!   at that only between two candidates for a prime (every 10 to 40 ms), so a guest that loses
//!   nothing by it is answered `TPM_RC_CANCELED` before.
//! * Where the host says how long a VMM waits, the guest is answered `TPM_RC_RETRY` in time and the
//!   TPM goes on: cloud-hypervisor takes an answer after 100 ms for that to the next command.
//!   Linux sends the same command again after 20, 40 … 1,280 ms, and gets its answer then.
//!
//! The loop tells the thread before and after each such command; what one of them has answered, the
//! other does not answer again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use foreign_descriptors::Foreign;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tpm_wire::{MAX_SIZE, ResponseCode, length_in_stream};

use crate::engine::Canceller;
use crate::sockets::{Arrival, Connection};

/// The loop's end of the thread.
pub(super) struct Interim {
    working: Arc<Mutex<Option<Work>>>,
    /// Makes the thread look again.
    wake: UnixStream,
    /// The thread's end of that, until it is started.
    woken: Option<UnixStream>,
}

/// A command that the TPM works on, as the thread sees it.
pub(super) struct Work {
    /// Where the command came from.
    data: Arc<Foreign>,
    /// Where the VMM may ask for it to be given up, until it has asked for something.
    control: Option<Arc<Foreign>>,
    canceller: Canceller,
    /// Whether the guest loses nothing if it is answered `TPM_RC_CANCELED` at once.
    can_be_given_up: bool,
    /// For how long the VMM waits for an answer to a command.
    patience: Option<Duration>,
    /// When the command that waits for an answer is to be answered at the latest.
    due: Option<Instant>,
    /// What the command was answered meanwhile.
    answered: Option<ResponseCode>,
}

/// The thread polls and answers.
const STACK: usize = 64 * 1024;
/// `CMD_CANCEL_TPM_CMD`
const CANCEL: [u8; 4] = [0, 0, 0, 9];
/// Its answer, if all is well.
const SUCCESS: [u8; 4] = [0; 4];

impl Interim {
    /// Without the thread, which has to be started where the process is being confined.
    pub(super) fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        Ok(Self {
            working: Arc::default(),
            wake,
            woken: Some(woken),
        })
    }

    /// Starts the thread. It has the rights of the one that calls this.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let Some(woken) = self.woken.take() else {
            return Ok(());
        };
        let working = Arc::clone(&self.working);
        let (is_up, up) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("interim".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _ = is_up.send(());
                drop(is_up);
                while watch(&working, &woken).is_ok() {}
            })?;
        // Starting a thread takes system calls that a confined process may not make.
        up.recv().map_err(io::Error::other)
    }

    /// The TPM begins with a command.
    pub(super) fn begin(&self, work: Work) {
        *lock(&self.working) = Some(work);
        // If it does not take a byte, there are some already.
        let _ = send(&self.wake, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// The TPM is done with it: what the guest was told meanwhile.
    pub(super) fn end(&self) -> Option<ResponseCode> {
        lock(&self.working).take().and_then(|work| work.answered)
    }
}

fn lock(working: &Mutex<Option<Work>>) -> MutexGuard<'_, Option<Work>> {
    working.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until there is something to do for a command, and does it.
fn watch(working: &Mutex<Option<Work>>, woken: &UnixStream) -> io::Result<()> {
    let (sockets, due) = lock(working)
        .as_ref()
        .map_or(([None, None], None), Work::awaits);
    let [data, control] = &sockets;
    let mut polled: Vec<PollFd<'_>> = [Some(woken.as_fd()), fd(data), fd(control)]
        .into_iter()
        .flatten()
        .map(|source| PollFd::new(source, PollFlags::POLLIN))
        .collect();
    let timeout = due.map_or(PollTimeout::NONE, |due| {
        let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    // Bytes that say nothing but that there are some.
    let _ = recv(woken, &mut [0; 16], RecvFlags::DONTWAIT);
    if let Some(work) = lock(working).as_mut() {
        work.go_on();
    }
    Ok(())
}

fn fd(socket: &Option<Arc<Foreign>>) -> Option<BorrowedFd<'_>> {
    socket.as_deref().map(AsFd::as_fd)
}

impl Work {
    /// A command that came over `data`. `control` is the VMM's, if nothing of a request was read
    /// from it.
    pub(super) fn new(
        data: &Connection,
        control: Option<&Connection>,
        canceller: Canceller,
        can_be_given_up: bool,
        patience: Option<Duration>,
    ) -> io::Result<Self> {
        let again = |connection: &Connection| {
            let descriptor = connection.as_fd().try_clone_to_owned()?;
            io::Result::Ok(Arc::new(Foreign::from(descriptor)))
        };
        Ok(Self {
            data: again(data)?,
            control: control.map(again).transpose()?,
            canceller,
            can_be_given_up,
            patience,
            due: patience.map(|patience| Instant::now() + patience),
            answered: None,
        })
    }

    /// Whose bytes are waited for, and until when.
    fn awaits(&self) -> ([Option<Arc<Foreign>>; 2], Option<Instant>) {
        let awaits_next = self.answered.is_some() && self.due.is_none() && self.patience.is_some();
        let data = awaits_next.then(|| Arc::clone(&self.data));
        ([data, self.control.clone()], self.due)
    }

    fn go_on(&mut self) {
        self.hear_control();
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        match self.answered {
            None if is_due => self.answer(ResponseCode::RETRY),
            None => {}
            Some(_) => self.see_next(is_due),
        }
    }

    fn hear_control(&mut self) {
        let Some(control) = &self.control else {
            return;
        };
        let mut request = [0; CANCEL.len()];
        match recv(control, &mut request, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Ok((_, 4)) if request == CANCEL => {}
            // Something else, which has to wait for the TPM.
            _ => {
                self.control = None;
                return;
            }
        }
        (self.canceller)();
        if self.can_be_given_up && self.answered.is_none() {
            self.answer(ResponseCode::CANCELED);
        }
        if let Some(Ok(mut control)) = self.control.take().map(|fd| connection(&fd))
            && let Ok(Arrival::Bytes) = control.read_at_most(CANCEL.len())
        {
            let _ = control.write_until(&SUCCESS, Instant::now());
        }
    }

    /// The TPM is at a command that its guest has got an answer to. The next one may have come:
    /// then it waits for its turn, as long as its VMM does.
    fn see_next(&mut self, is_due: bool) {
        let Some(patience) = self.patience else {
            return;
        };
        let mut bytes = [0; MAX_SIZE];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let there = match recv(&self.data, &mut bytes, flags) {
            Ok((_, there)) if there > 0 => there,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return self.due = None,
            // Its end is the loop's to see.
            Ok(_) | Err(_) => return self.patience = None,
        };
        let arrived = bytes.get(..there).unwrap_or_default();
        match length_in_stream(arrived) {
            Ok(Some(length)) if there >= length && is_due => {
                let taken = connection(&self.data).map(|mut data| data.read_at_most(length));
                match taken {
                    Ok(Ok(Arrival::Bytes)) => self.answer(ResponseCode::RETRY),
                    _ => self.patience = None,
                }
            }
            Ok(Some(length)) if there >= length => {
                self.due.get_or_insert_with(|| Instant::now() + patience);
            }
            // The rest of it is awaited without looking at these bytes again and again.
            Ok(_) => self.due = Some(Instant::now() + Duration::from_millis(1)),
            Err(_) => self.patience = None,
        }
    }

    fn answer(&mut self, code: ResponseCode) {
        let response = code.response();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.due = None;
        match send(&self.data, &response, flags) {
            Ok(length) if length == response.len() => self.answered = Some(code),
            // The VMM takes nothing: the loop finds out.
            Ok(_) | Err(_) => self.patience = None,
        }
    }
}

/// The same socket, to be read from.
fn connection(socket: &Foreign) -> io::Result<Connection> {
    let descriptor = socket.as_fd().try_clone_to_owned()?;
    Ok(Connection::over(descriptor.into()))
}
