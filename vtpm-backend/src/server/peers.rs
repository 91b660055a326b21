//! Requests of the VMM, commands of its guest, and commands of tools on the host.

use std::time::{Duration, Instant};

use tpm_wire::{ResponseCode, length_in_stream};

use super::caller::asks_for_last_part;
use super::persistence::Consequence;
use super::slow::Kept;
use super::{Keeper, Server};
use crate::control::{Reply, Request, RequestStream, StateExport, Vrot, handle};
use crate::engine::Engine;
use crate::sockets::{Arrival, Connection};

/// An attached VMM. Both channels end together.
pub(super) struct Vmm {
    pub(super) control: Connection,
    requests: RequestStream,
    /// Its guest's commands.
    pub(super) data: Option<Connection>,
    /// The answer to the last of them, if the guest was told to send it again.
    pub(super) kept: Option<Kept>,
}

/// The peer that sends commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Vmm,
    Host,
}

/// What a VMM may take, in all, for the answers to the requests that it sent at a time. Nobody else
/// is served meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

impl Vmm {
    /// One that has said nothing yet.
    pub(super) fn new(control: Connection) -> Self {
        Self {
            control,
            requests: RequestStream::default(),
            data: None,
            kept: None,
        }
    }

    /// Whether part of a request is there.
    pub(super) fn has_begun_request(&self) -> bool {
        self.requests.has_begun(self.control.received())
    }

    /// Whether the rest of a request has been missing for longer than this.
    pub(super) fn is_stalled(&mut self, limit: Duration) -> bool {
        let has_begun = self.has_begun_request();
        self.control.is_stalled(has_begun, limit)
    }
}

/// Whether something complete, or something impossible, is there to be served.
pub(super) fn has_command(connection: &Connection) -> bool {
    let received = connection.received();
    length_in_stream(received).map_or(true, |length| {
        length.is_some_and(|length| received.len() >= length)
    })
}

/// Whether the rest of a command has been missing for longer than this.
pub(super) fn has_stalled(connection: &mut Connection, limit: Duration) -> bool {
    let has_begun = !connection.received().is_empty() && !has_command(connection);
    connection.is_stalled(has_begun, limit)
}

impl<E: Engine> Server<E> {
    pub(super) fn serve_control(&mut self) {
        let Some(mut vmm) = self.vmm.take() else {
            return;
        };
        if self.serve_requests(&mut vmm) {
            self.vmm = Some(vmm);
        } else {
            self.detach_vmm();
        }
    }

    /// Serves all complete requests; false when the peer is done.
    fn serve_requests(&mut self, peer: &mut Vmm) -> bool {
        match peer.control.read() {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return false,
            Err(error) => {
                tracing::warn!(%error, "the control channel failed");
                return false;
            }
        }
        let began = Instant::now();
        loop {
            let request = match peer.requests.take(peer.control.received()) {
                Ok(Some((request, length))) => {
                    peer.control.consume(length);
                    request
                }
                Ok(None) => return true,
                Err(error) => {
                    tracing::warn!(%error, "the control channel is closed");
                    return false;
                }
            };
            tracing::debug!(?request, "control");
            if !self.claim_state_for(&request) {
                let refused = peer.control.write(&[0, 0, 0, 9]);
                tracing::warn!(
                    ?refused,
                    "a request was refused: the state is another process's"
                );
                continue;
            }
            let is_last_part = asks_for_last_part(&request);
            let consequence = Consequence::of(&request);
            if let Request::Init { .. } = request {
                self.on_for_manager = false;
                peer.kept = None;
            }
            // What asks no more than how the TPM is waits until its guest's command is over.
            if consequence != Consequence::None {
                self.give_up_for_others();
            }
            if consequence == Consequence::GoesOn {
                self.go_on();
            }
            let state_export: &mut dyn StateExport = match &mut self.keeper {
                Keeper::Manager(link) => &mut **link,
                Keeper::Store(store) => &mut store.state_export(),
            };
            let mut vrot = Vrot {
                engine: &mut self.engine,
                locality: &mut self.locality,
                state_export,
            };
            let reply = handle(&mut vrot, request);
            self.keeper.save(&mut self.engine);
            let reply = self.conclude(consequence, reply);
            let (answer, goes_on) = match reply {
                Reply::Answer(answer) => (answer, true),
                Reply::AnswerAndEnd(answer) => (answer, false),
                Reply::TakeDataFd => {
                    if let Some(kept) = peer.kept.take() {
                        self.forget(&kept);
                    }
                    let is_first = peer.data.is_none();
                    let answer = take_data_fd(peer);
                    if let (true, Some(link)) = (is_first, self.keeper.manager_mut()) {
                        link.count_vmm();
                    }
                    (answer, true)
                }
            };
            if let Err(error) = peer.control.write(&answer) {
                tracing::warn!(%error, "the control channel did not take a reply");
                return false;
            }
            self.note_given_away(is_last_part);
            if !goes_on {
                self.end_after_shutdown();
                return false;
            }
            if began.elapsed() > PATIENCE {
                tracing::warn!("a VMM that sent much and takes little is disconnected");
                return false;
            }
        }
    }

    /// Serves one command: between two, whoever else waits has a turn, and above all the manager,
    /// whatever this peer has sent ahead and however slowly it reads. Gives the connection back
    /// while the peer is there.
    pub(super) fn serve_command(
        &mut self,
        mut connection: Connection,
        peer: Peer,
    ) -> Option<Connection> {
        // What was sent ahead stays where it is until its turn.
        let arrival = if has_command(&connection) {
            Ok(Arrival::Nothing)
        } else {
            connection.read()
        };
        match arrival {
            Ok(Arrival::Bytes | Arrival::Nothing) => {}
            Ok(Arrival::End) => return None,
            Err(error) => {
                tracing::warn!(%error, ?peer, "a data channel failed");
                return None;
            }
        }
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
        self.give_up_for_others();
        self.on_for_manager = false;
        if peer == Peer::Host && self.starts_for_host {
            self.start_for_host();
        }
        let response = match peer {
            _ if !self.claim_state() => Some(ResponseCode::FAILURE.response()),
            Peer::Vmm => self.execute_for_guest(&connection, command),
            Peer::Host => Some(self.execute(&command)),
        };
        if let Err(error) = connection.write(&response.unwrap_or_default()) {
            tracing::warn!(%error, ?peer, "a data channel did not take a response");
            return None;
        }
        if peer == Peer::Vmm {
            self.polling.note_answered();
        }
        Some(connection)
    }
}

/// A new descriptor takes an older one's place: a VMM that was restarted brings its own.
fn take_data_fd(vmm: &mut Vmm) -> Vec<u8> {
    const SUCCESS: [u8; 4] = [0; 4];
    const BAD_PARAMETER: [u8; 4] = [0, 0, 0, 3];
    let Some(descriptor) = vmm.control.take_descriptor() else {
        tracing::warn!("CMD_SET_DATAFD came without a descriptor");
        return BAD_PARAMETER.to_vec();
    };
    match Connection::handed_over(descriptor) {
        Ok(data) => {
            vmm.data = Some(data);
            SUCCESS.to_vec()
        }
        Err(error) => {
            tracing::warn!(%error, "the descriptor of CMD_SET_DATAFD is refused");
            BAD_PARAMETER.to_vec()
        }
    }
}
