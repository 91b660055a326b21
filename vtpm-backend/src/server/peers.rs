//! Requests of the VMM, commands of its guest, and commands of tools on the host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Keeper, Server};
use crate::command::length_in_stream;
use crate::control::{Courier, Reply, Request, Trusting, Vrot, handle};
use crate::engine::Engine;
use crate::sockets::{Arrival, Connection};

/// Who sends commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Vmm,
    Host,
}

/// What a peer may take, in all, for the answers to what it sent at a time. Nobody else is served
/// meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

impl<E: Engine> Server<E> {
    pub(super) fn serve_control(&mut self) {
        let Some(mut connection) = self.control.take() else {
            return;
        };
        let alive = self.serve_requests(&mut connection);
        if alive {
            self.control = Some(connection);
        } else {
            // The data channel belongs to the VMM that is gone.
            self.data = None;
        }
        self.note_attachment();
    }

    /// Serves all complete requests; false when the peer is done.
    fn serve_requests(&mut self, connection: &mut Connection) -> bool {
        match connection.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return false,
            Err(error) => {
                tracing::warn!(%error, "the control channel failed");
                return false;
            }
        }
        let began = Instant::now();
        loop {
            let request = match Request::parse(connection.received()) {
                Ok(Some((request, length))) => {
                    connection.consume(length);
                    request
                }
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, "the control channel is closed");
                    return false;
                }
            };
            tracing::debug!(?request, "control");
            let takes_state = matches!(request, Request::SetStateBlob { .. });
            let courier: &dyn Courier = match &self.keeper {
                Keeper::Folder(_) => &Trusting,
                Keeper::Manager(link) => link.as_ref(),
            };
            let mut vrot = Vrot {
                engine: &mut self.engine,
                locality: &mut self.locality,
                courier,
            };
            let reply = handle(&mut vrot, request);
            if takes_state && matches!(self.keeper, Keeper::Folder(_)) {
                self.save_state_that_came();
            } else {
                self.save_changes();
            }
            let (answer, goes_on) = match reply {
                Reply::Answer(answer) => (answer, true),
                Reply::AnswerAndEnd(answer) => (answer, false),
                Reply::TakeDataFd => (self.take_data_fd(connection), true),
            };
            if let Err(error) = connection.write(&answer) {
                tracing::warn!(%error, "the control channel did not take a reply");
                return false;
            }
            if !goes_on {
                return false;
            }
            if began.elapsed() > PATIENCE {
                tracing::warn!("a VMM that sent much and takes little is disconnected");
                return false;
            }
        }
    }

    /// A new descriptor takes an older one's place: a VMM that was restarted brings its own.
    fn take_data_fd(&mut self, connection: &mut Connection) -> Vec<u8> {
        const SUCCESS: [u8; 4] = [0; 4];
        const BAD_PARAMETER: [u8; 4] = [0, 0, 0, 3];
        let taken = connection
            .take_descriptor()
            .map(|descriptor: OwnedFd| UnixStream::from(descriptor))
            .and_then(|stream| Connection::new(stream).ok());
        match taken {
            Some(data) => {
                self.data = Some(data);
                SUCCESS.to_vec()
            }
            None => BAD_PARAMETER.to_vec(),
        }
    }

    /// Serves all complete commands; gives the connection back while the peer is there.
    pub(super) fn serve_commands(
        &mut self,
        mut connection: Connection,
        peer: Peer,
    ) -> Option<Connection> {
        match connection.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return None,
            Err(error) => {
                tracing::warn!(%error, ?peer, "a data channel failed");
                return None;
            }
        }
        loop {
            let length = match length_in_stream(connection.received()) {
                Ok(Some(length)) if connection.received().len() >= length => length,
                Ok(_) => return Some(connection),
                Err(code) => {
                    // Where the next command starts is not known any more.
                    let _ = connection.write(&code.response());
                    tracing::warn!(?peer, "a data channel with an impossible command is closed");
                    return None;
                }
            };
            let command = zeroize::Zeroizing::new(
                connection
                    .received()
                    .get(..length)
                    .unwrap_or_default()
                    .to_vec(),
            );
            connection.consume(length);
            if peer == Peer::Host {
                self.start_for_host();
            }
            let response = self.execute(&command);
            if let Err(error) = connection.write(&response) {
                tracing::warn!(%error, ?peer, "a data channel did not take a response");
                return None;
            }
        }
    }
}
