//! A command that the TPM is at while the loop serves others.
//!
//! The TPM has a thread of its own for commands that make keys, where they come by a queue in the
//! guest's memory: the request stays open, and the manager, the VMM and, behind a bus, the driver
//! itself are served meanwhile. Whoever else needs the TPM waits until it is back. What must not
//! wait has the command given up (libtpms looks between two candidates for a prime, every 10 to
//! 40 ms), and the guest is told to send it again (`TPM_RC_RETRY`, which Linux follows by itself).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tpm_wire::{Command, Response, ResponseCode};
use vhost_user_tpm::Execution;
use zeroize::Zeroizing;

use super::Server;
use super::slow::Care;
use crate::engine::{BufferSize, Canceller, Engine, EngineError, HashStep, StateKind};

/// A TPM that can be at a command while this thread goes on. Everything else that is asked of it
/// waits until that is over.
pub(super) struct Background<E> {
    engine: Arc<Mutex<E>>,
    canceller: Canceller,
    thread: Option<Thread>,
    is_at_work: bool,
    /// Whether a measurement was begun (`_TPM_Hash_Start`) that any command would end.
    is_measuring: bool,
}

/// This end of the TPM's thread.
struct Thread {
    orders: SyncSender<Order>,
    /// The thread has the TPM, and begins.
    begun: Receiver<()>,
    responses: Receiver<Zeroizing<Vec<u8>>>,
    /// Readable when there is a response.
    over: UnixStream,
}

impl Thread {
    /// The response, once it is there. What made this end readable is taken first: it may be of the
    /// response before, which came to whoever gave that command up sooner than this, and nothing
    /// else would take it.
    fn take_response(&self) -> Option<Zeroizing<Vec<u8>>> {
        let _ = recv(&self.over, &mut [0; 16], RecvFlags::DONTWAIT);
        self.responses.try_recv().ok()
    }
}

struct Order {
    command: Zeroizing<Vec<u8>>,
    locality: u8,
}

/// More than libtpms needs.
const STACK: usize = 1024 * 1024;
/// How often a command that is to be given up is given up again: the library forgets it when it
/// begins with a command.
const AGAIN: Duration = Duration::from_millis(5);

impl<E: Engine> Background<E> {
    /// Without the thread.
    pub(super) fn new(engine: E) -> Self {
        Self {
            canceller: engine.canceller(),
            engine: Arc::new(Mutex::new(engine)),
            thread: None,
            is_at_work: false,
            is_measuring: false,
        }
    }

    /// Readable when the command that the TPM was at is over.
    pub(super) fn over(&self) -> Option<BorrowedFd<'_>> {
        let thread = self.thread.as_ref().filter(|_| self.is_at_work);
        thread.map(|thread| thread.over.as_fd())
    }

    /// Whether the TPM is at a command now.
    pub(super) fn is_at_work(&self) -> bool {
        self.is_at_work
    }

    /// Whether the VMM is measuring into the TPM (`_TPM_Hash_Start` to `_TPM_Hash_End`). A command that
    /// comes in between ends that, and the TPM ignores the rest without an error: only the guest's
    /// own may.
    pub(super) fn is_measuring(&self) -> bool {
        self.is_measuring
    }

    /// Whoever measured is gone, and does not go on with it.
    pub(super) fn forget_measurement(&mut self) {
        self.is_measuring = false;
    }

    /// Has the thread carry out a command; false if there is no thread.
    fn begin(&mut self, command: &[u8], locality: u8) -> bool {
        let Some(thread) = &self.thread else {
            return false;
        };
        let order = Order {
            command: Zeroizing::new(command.to_vec()),
            locality,
        };
        self.is_measuring = false;
        // From here on, the TPM is the thread's.
        self.is_at_work = thread.orders.send(order).is_ok() && thread.begun.recv().is_ok();
        self.is_at_work
    }

    /// The response, once it is there.
    fn take_response(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        let thread = self.thread.as_ref().filter(|_| self.is_at_work)?;
        let response = thread.take_response()?;
        self.is_at_work = false;
        Some(response)
    }

    /// Has the TPM give up what it is at, and waits for that.
    fn give_up(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        let thread = self.thread.as_ref().filter(|_| self.is_at_work)?;
        let response = loop {
            (self.canceller)();
            match thread.responses.recv_timeout(AGAIN) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(response) => break Some(response),
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        let _ = recv(&thread.over, &mut [0; 16], RecvFlags::DONTWAIT);
        self.is_at_work = false;
        response
    }

    fn lock(&self) -> MutexGuard<'_, E> {
        lock(&self.engine)
    }
}

fn lock<E>(engine: &Mutex<E>) -> MutexGuard<'_, E> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Engine + Send + 'static> Background<E> {
    /// Starts the thread. It has the rights of the one that calls this.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let (orders, ordered) = sync_channel::<Order>(1);
        let (begins, begun) = sync_channel(1);
        let (responds, responses) = sync_channel(1);
        let (over, ends) = UnixStream::pair()?;
        let engine = Arc::clone(&self.engine);
        let (is_up, up) = sync_channel(1);
        thread::Builder::new()
            .name("tpm".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _ = is_up.send(());
                drop(is_up);
                for order in ordered {
                    let mut engine = lock(&engine);
                    let _ = begins.send(());
                    let response = engine.execute(&order.command, order.locality);
                    // Before the TPM is anybody else's.
                    let _ = responds.send(Zeroizing::new(response));
                    let _ = send(&ends, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                }
            })?;
        // Starting a thread takes system calls that a confined process may not make.
        up.recv().map_err(io::Error::other)?;
        self.thread = Some(Thread {
            orders,
            begun,
            responses,
            over,
        });
        Ok(())
    }
}

impl<E: Engine> Server<E> {
    /// Carries out a command that came by a queue, or begins with it.
    pub(super) fn execute_for_queue(
        &mut self,
        command: &[u8],
        response: &mut Vec<u8>,
    ) -> Execution {
        // Of a driver that gave up the one before.
        self.give_up_for_others();
        let parsed = Command::parse(command);
        let makes_key = parsed.is_ok_and(|command| Care::of(command.code()) == Care::MakesKey);
        if makes_key && self.engine.is_on() {
            self.go_on();
            if self.engine.begin(command, self.locality) {
                return Execution::GoesOn;
            }
        }
        let answer = Zeroizing::new(self.execute(command));
        response.extend_from_slice(&answer);
        Execution::Done
    }

    /// The TPM may be done with the command that came by a queue.
    pub(super) fn end_background(&mut self) {
        if let Some(response) = self.engine.take_response() {
            self.answer_queue(&response);
        }
    }

    /// The TPM is needed at once: what it is at is given up, and its guest told to send it again.
    pub(super) fn give_up_for_others(&mut self) {
        let Some(response) = self.engine.give_up() else {
            return;
        };
        let code = Response::parse(&response).map(|response| response.code());
        if code == Some(ResponseCode::CANCELED) {
            self.answer_queue(&ResponseCode::RETRY.response());
        } else {
            self.answer_queue(&response);
        }
    }

    fn answer_queue(&mut self, response: &[u8]) {
        self.keeper.save(&mut self.engine);
        let device = self.device.as_mut();
        if device.is_some_and(|device| device.complete(response)) {
            self.polling.note_answered();
        } else {
            self.forget_answer(response);
        }
    }
}

impl<E: Engine> Engine for Background<E> {
    fn power_on(&mut self) -> Result<(), EngineError> {
        self.is_measuring = false;
        self.lock().power_on()
    }

    fn power_off(&mut self) {
        self.is_measuring = false;
        self.lock().power_off();
    }

    fn give_away(&mut self) {
        self.lock().give_away();
    }

    fn go_on(&mut self) {
        self.lock().go_on();
    }

    fn is_on(&self) -> bool {
        // One that is off is at no command.
        self.is_at_work || self.lock().is_on()
    }

    fn execute(&mut self, command: &[u8], locality: u8) -> Vec<u8> {
        self.is_measuring = false;
        self.lock().execute(command, locality)
    }

    fn canceller(&self) -> Canceller {
        self.canceller
    }

    fn buffer_size(&mut self, wanted: Option<u32>) -> BufferSize {
        self.lock().buffer_size(wanted)
    }

    fn established(&self) -> Result<bool, EngineError> {
        self.lock().established()
    }

    fn reset_established(&mut self, locality: u8) -> Result<(), EngineError> {
        self.lock().reset_established(locality)
    }

    fn hash(&mut self, step: HashStep<'_>) -> Result<(), EngineError> {
        let begins = match step {
            HashStep::Start => true,
            HashStep::Data(_) => self.is_measuring,
            HashStep::End => false,
        };
        let done = self.lock().hash(step);
        self.is_measuring = begins && done.is_ok();
        done
    }

    fn state(&mut self, kind: StateKind) -> Result<Option<Vec<u8>>, EngineError> {
        self.lock().state(kind)
    }

    fn set_state(&mut self, kind: StateKind, state: &[u8]) -> Result<(), EngineError> {
        self.lock().set_state(kind, state)
    }

    fn delete_volatile(&mut self) {
        self.lock().delete_volatile();
    }

    fn info(&self, flags: u64) -> Result<String, EngineError> {
        self.lock().info(flags)
    }

    fn changed_permanent_state(&mut self) -> Option<Vec<u8>> {
        self.lock().changed_permanent_state()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, ensure};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn a_byte_of_the_key_before_keeps_the_loop_awake_once() -> Result<()> {
        let (orders, _ordered) = sync_channel(1);
        let (_begins, begun) = sync_channel(1);
        let (responds, responses) = sync_channel(1);
        let (over, ends) = UnixStream::pair()?;
        let thread = Thread {
            orders,
            begun,
            responses,
            over,
        };
        let is_readable = || -> Result<bool> {
            let mut polled = [PollFd::new(&thread.over, PollFlags::IN)];
            Ok(poll(&mut polled, Some(&Timespec::default()))? == 1)
        };
        let end = || send(&ends, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);

        end()?;
        ensure!(is_readable()?);
        ensure!(thread.take_response().is_none());
        ensure!(
            !is_readable()?,
            "the loop would spin until the key is there"
        );

        // The next response comes all the same, also before its own byte.
        responds.send(Zeroizing::new(vec![1]))?;
        end()?;
        ensure!(is_readable()?);
        ensure!(
            thread
                .take_response()
                .is_some_and(|response| *response == [1])
        );
        ensure!(!is_readable()?);
        Ok(())
    }
}
