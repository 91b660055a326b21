//! What an event loop serves: a device, and the VMM that is connected to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::connection::{Arrival, Connection, ConnectionError};
use crate::device::{Device, Tpm};

/// A device, and the VMM that is connected to it, if one is.
pub struct Frontend {
    device: Box<dyn Device + Send>,
    connection: Option<Connection>,
}

/// Readable when the guest's driver has put something into the queue.
#[derive(Debug)]
pub struct Kick(Arc<OwnedFd>);

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Frontend {
    /// This device, to which nobody is connected.
    pub fn new(device: Box<dyn Device + Send>) -> Self {
        Self {
            device,
            connection: None,
        }
    }

    /// Takes a VMM's connection, in place of the one before.
    pub fn connect(&mut self, stream: UnixStream) -> Result<(), ConnectionError> {
        self.connection = None;
        self.connection = Some(Connection::new(stream, self.device.as_ref())?);
        Ok(())
    }

    /// Whether a VMM is connected.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Readable when the VMM sends something, or is gone.
    pub fn connection(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(Connection::stream)
    }

    /// Readable when the guest's driver has put something into the queue, while that runs.
    pub fn kick(&self) -> Option<Kick> {
        self.connection.as_ref()?.kick().map(Kick)
    }

    /// Whether something waits in the queue although nothing becomes readable.
    pub fn has_request(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(Connection::has_request)
    }

    /// Whether the driver has put something into the queue, as its memory says. That takes no system
    /// call, so it can be asked again and again.
    pub fn is_offered_request(&self) -> bool {
        (self.connection.as_ref()).is_some_and(Connection::is_offered_request)
    }

    /// Whether the rest of a message is missing: [`arrival`](Self::arrival) is to be called again
    /// after a while, and ends a connection that is waited for too long.
    pub fn is_incomplete(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(Connection::is_incomplete)
    }

    /// Whether the driver waits for the answer to a request that the TPM is at. What the VMM says now
    /// may end its queue or take its memory away: the request is to be answered before.
    pub fn has_open_request(&self) -> bool {
        (self.connection.as_ref()).is_some_and(Connection::has_open_request)
    }

    /// What the VMM has this device do next, for [`serve_connection`](Self::serve_connection); `None`
    /// while it says nothing, or half a message. Nothing waits, and nothing changes for its guest.
    pub fn arrival(&mut self) -> Option<Arrival> {
        self.connection.as_mut()?.arrival()
    }

    /// Follows what the VMM says. After an error its connection is closed: rings and the guest's
    /// memory are given back, and the TPM stays as it is.
    pub fn serve_connection(&mut self, arrival: Arrival) -> Result<(), ConnectionError> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let served = match arrival {
            Arrival::Message => connection.serve(self.device.as_mut()),
            Arrival::End(error) => Err(error),
        };
        if served.is_err() {
            self.connection = None;
        }
        served
    }

    /// The response to the command that went on. False if nobody waits for it.
    pub fn complete(&mut self, response: &[u8]) -> bool {
        let connection = self.connection.as_mut();
        connection.is_some_and(|connection| connection.answer(response))
            || self.device.complete(response)
    }

    /// Serves one request of the queue, if there is one.
    pub fn serve_queue(&mut self, tpm: &mut dyn Tpm) {
        if let Some(connection) = &mut self.connection {
            connection.serve_queue(self.device.as_mut(), tpm);
        }
    }
}
