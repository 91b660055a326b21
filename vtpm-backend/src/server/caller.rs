//! What the program that started a stand-alone backend decides: who may attach, whether the TPM is on
//! from the beginning, and with whom the process ends.

use std::io;
use std::os::fd::OwnedFd;

use backend_link::admission::VmmAdmission;

use super::peers::Vmm;
use super::{Server, load_state};
use crate::control::Request;
use crate::engine::{Engine, EngineError, StateKind};
use crate::sockets::{Connection, Listener};
use crate::stand_alone::Claim;

/// Who may attach as the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Processes of these users.
    Users(VmmAdmission),
    /// Whoever can connect: the socket's permissions say who that is, or its address.
    WhoeverConnects,
}

/// What ends the process, besides a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// `CMD_SHUTDOWN`
    pub with_shutdown: bool,
    /// The end of the control channel.
    pub with_control: bool,
    /// The end of the data channel.
    pub with_data: bool,
}

/// How a TPM that was switched on is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    /// `TPM_SU_CLEAR`
    Clear,
    /// `TPM_SU_STATE`
    State,
}

impl Startup {
    /// `TPM2_Startup`
    const fn command(self) -> [u8; 12] {
        let kind = match self {
            Self::Clear => 0,
            Self::State => 1,
        };
        [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, kind]
    }
}

impl<E: Engine> Server<E> {
    /// Whether the process at the other end, of this user, may be this VM's VMM.
    pub(super) fn admits(&self, uid: io::Result<u32>) -> bool {
        match (&self.admission, uid) {
            // No user is known of who comes by network.
            (Admission::WhoeverConnects, _) => true,
            (Admission::Users(users), Ok(uid)) if users.admits(uid) => true,
            (Admission::Users(_), other) => {
                tracing::warn!(
                    ?other,
                    "a process of another user was refused at the VMM's socket"
                );
                false
            }
        }
    }

    /// Where a VMM attaches, whoever's it is that can connect.
    pub fn listen_for_whoever_connects(&mut self, listener: Listener) {
        self.control_listener = Some(listener);
        self.admission = Admission::WhoeverConnects;
    }

    /// A VMM's connection that whoever started this process made for it.
    pub fn serve_vmm(&mut self, stream: OwnedFd) {
        self.vmm = Some(Vmm::new(Connection::new(stream)));
    }

    /// A connection of a tool on the host, as [`listen_for_host`](Self::listen_for_host) takes them.
    pub fn serve_host(&mut self, stream: OwnedFd) {
        self.host = Some(Connection::new(stream));
    }

    /// Tools on the host find the TPM as it is: switched off, unless it was switched on before.
    pub fn leave_starting_to_others(&mut self) {
        self.starts_for_host = false;
    }

    /// What ends the process, besides a signal.
    pub fn end_with(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// Switches the TPM on before anybody attaches, and starts it.
    pub fn switch_on(&mut self, startup: Option<Startup>) -> Result<(), EngineError> {
        self.engine.power_on()?;
        self.forget_used_volatile();
        if let Some(startup) = startup {
            self.engine.execute(&startup.command(), 0);
        }
        self.keeper.save(&mut self.engine);
        Ok(())
    }

    /// `CMD_SHUTDOWN` was answered.
    pub(super) fn end_after_shutdown(&mut self) {
        if self.ending.with_shutdown {
            self.end();
        }
    }

    /// A data channel may be gone.
    pub(super) fn end_without_data(&mut self, is_gone: bool) {
        if is_gone && self.ending.with_data {
            tracing::info!("the data channel is gone: the TPM ends");
            self.end();
        }
    }

    /// The control channel is gone, and a data channel with it, if it had one.
    pub(super) fn end_without_control(&mut self, had_data: bool) {
        if self.ending.with_control || (had_data && self.ending.with_data) {
            tracing::info!("the control channel is gone: the TPM ends");
            self.end();
        }
    }

    /// Makes sure that the state's place is ours, which it may not be while a VM moves; false if another
    /// process has it.
    pub(super) fn claim_state(&mut self) -> bool {
        let Some(store) = self.keeper.store_mut() else {
            return true;
        };
        let claimed = match store.claim() {
            Ok(Claim::Ours) => return true,
            Ok(Claim::New) => load_state(&mut self.engine, store),
            Err(error) => Err(error.into()),
        };
        claimed
            .inspect_err(|error| tracing::error!("the state cannot be used: {error:#}"))
            .is_ok()
    }

    /// The same before a request that has the TPM do something.
    pub(super) fn claim_state_for(&mut self, request: &Request) -> bool {
        match request {
            Request::Init { .. }
            | Request::HashStart
            | Request::HashData(_)
            | Request::HashEnd
            | Request::StoreVolatile
            | Request::ResetEstablished(_)
            | Request::SetStateBlob { .. }
            | Request::LockStorage => self.claim_state(),
            _ => true,
        }
    }

    /// A request was answered. By the last part of the state, which a TPM 2.0 does not have, a VMM says
    /// that it has all.
    pub(super) fn note_given_away(&mut self, is_last_part: bool) {
        if is_last_part && let Some(store) = self.keeper.store_mut() {
            store.given_away();
        }
    }
}

/// Whether a VMM asks for the last part of the state.
pub(super) fn asks_for_last_part(request: &Request) -> bool {
    matches!(
        request,
        Request::GetStateBlob {
            kind: Some(StateKind::SaveState),
            ..
        }
    )
}
