//! A VMM that shares its guest's memory, and the queue of commands in it.

use std::os::fd::BorrowedFd;

use tpm_wire::ResponseCode;
use vhost_user_tpm::{ConnectionError, Execution, Frontend, Kick, Tpm};

use super::Server;
use crate::engine::Engine;
use crate::sockets::{Connection, Listener};

/// Where such a VMM connects, and the device that it finds there.
pub(super) struct DeviceSocket {
    listener: Listener,
    frontend: Frontend,
    /// Whether the manager knows of the VMM that is connected as one that serves a guest.
    is_counted: bool,
}

impl DeviceSocket {
    /// To which nobody is connected.
    pub(super) fn new(listener: Listener, frontend: Frontend) -> Self {
        Self {
            listener,
            frontend,
            is_counted: false,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.frontend.is_connected()
    }

    /// Readable when something is to be served. What is there of half a message stays where it is,
    /// and would be readable all the time: its rest is looked for at intervals.
    pub(super) fn connection(&self) -> Option<BorrowedFd<'_>> {
        let connection = self.frontend.connection();
        connection.filter(|_| !self.is_incomplete())
    }

    pub(super) fn kick(&self) -> Option<Kick> {
        self.frontend.kick()
    }

    pub(super) fn has_request(&self) -> bool {
        self.frontend.has_request()
    }

    /// Whether the driver has put something into the queue, as the guest's memory says.
    pub(super) fn is_offered_request(&self) -> bool {
        self.frontend.is_offered_request()
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.frontend.is_incomplete()
    }

    /// The response to a command that went on; false if nobody waits for it.
    pub(super) fn complete(&mut self, response: &[u8]) -> bool {
        self.frontend.complete(response)
    }
}

impl<E: Engine> Server<E> {
    /// Where the next VMM is waited for: not before the TPM has its state. A second one is told at
    /// once that one is connected.
    pub(super) fn waiting_device(&self) -> Option<&Listener> {
        let device = self.device.as_ref()?;
        self.keeper.has_state().then_some(&device.listener)
    }

    pub(super) fn accept_device(&mut self) {
        let Some(stream) = self.waiting_device().and_then(Listener::accept) else {
            return;
        };
        if !self.admits(Connection::peer_uid_of(&stream)) {
            return;
        }
        // The one before may have gone just before this one came.
        self.serve_device_connection();
        let Some(device) = &mut self.device else {
            return;
        };
        if device.is_connected() {
            tracing::warn!("a second VMM was turned away: one is attached");
            return;
        }
        device.is_counted = false;
        if let Err(error) = device.frontend.connect(stream.into()) {
            tracing::warn!(%error, "a VMM's connection is not taken");
        }
        self.note_attachment();
    }

    /// What the VMM orders concerns rings and memory. The TPM goes on as it is, whatever becomes of
    /// the connection: a guest, or its VMM, could otherwise forget what was measured. A guest's key is
    /// given up for what its own VMM says, once that is whole, and for nobody who merely connects.
    pub(super) fn serve_device_connection(&mut self) {
        let Some(device) = &mut self.device else {
            return;
        };
        let Some(arrival) = device.frontend.arrival() else {
            return;
        };
        if device.frontend.has_open_request() {
            self.give_up_for_others();
        }
        let Some(device) = &mut self.device else {
            return;
        };
        match device.frontend.serve_connection(arrival) {
            Ok(()) => return,
            Err(ConnectionError::Ended) => tracing::debug!("the VMM closed its connection"),
            Err(error) => tracing::warn!(%error, "the VMM's connection is closed"),
        }
        self.note_attachment();
    }

    /// Serves one request, so that the manager and the others get in between. Each connection counts as
    /// a VMM of its own: nobody can tell one that was restarted from one that lost its connection.
    pub(super) fn serve_device_queue(&mut self) {
        let Some(mut device) = self.device.take() else {
            return;
        };
        if !std::mem::replace(&mut device.is_counted, true)
            && let Some(link) = self.keeper.manager_mut()
        {
            link.count_vmm();
        }
        device.frontend.serve_queue(self);
        // While the TPM makes a key, its guest has nothing to send.
        if !device.frontend.has_open_request() {
            self.polling.note_answered();
        }
        self.device = Some(device);
    }

    /// A guest finds a TPM that was switched on and not started, as after the reset of a platform,
    /// whatever the manager did with it before. No VMM says when a platform is reset, so this
    /// happens once; from then on only the host switches the TPM off.
    fn switch_on_for_guest(&mut self) {
        if self.engine.is_on() && !self.on_for_manager {
            return;
        }
        self.on_for_manager = false;
        if let Err(error) = self.engine.power_on() {
            tracing::error!(%error, "the TPM does not switch on");
            return;
        }
        self.forget_used_volatile();
        self.keeper.save(&mut self.engine);
    }
}

impl<E: Engine> Server<E> {
    /// Resets the TPM of a guest whose platform was reset, which only the host knows: a TPM response.
    /// What its guest did is shut down in an orderly way before.
    pub(super) fn reset_for_host(&mut self) -> Vec<u8> {
        if self.device.is_none() {
            tracing::warn!("a reset is refused: the VMM resets a TPM that it emulates");
            return ResponseCode::FAILURE.response();
        }
        // Switched on by anybody but its guest, it would forget where it was.
        if self.is_put_aside() || !self.keeper.has_state() {
            return ResponseCode::RETRY.response();
        }
        if !self.engine.is_on() {
            return ResponseCode::SUCCESS.response();
        }
        self.give_up_for_others();
        if let Err(error) = self.engine.power_on() {
            tracing::error!(%error, "the TPM does not switch on");
            return ResponseCode::FAILURE.response();
        }
        self.on_for_manager = false;
        self.keeper.save(&mut self.engine);
        tracing::info!("the TPM was reset on the host's order");
        ResponseCode::SUCCESS.response()
    }
}

impl<E: Engine> Tpm for Server<E> {
    fn execute(&mut self, command: &[u8], response: &mut Vec<u8>) -> Execution {
        if !self.claim_state() {
            response.extend_from_slice(&ResponseCode::FAILURE.response());
            return Execution::Done;
        }
        self.switch_on_for_guest();
        self.execute_for_queue(command, response)
    }

    fn give_up(&mut self) {
        self.engine.canceller()();
    }
}
