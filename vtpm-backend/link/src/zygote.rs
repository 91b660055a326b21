//! What passes between the manager and the process that forks backends for it.

use caps::Capability;
use minicbor::{Decode, Encode};

use crate::admission::VmmAdmission;
use crate::transport::Transport;

/// What it takes to give another process a user of its own.
pub const TO_CHANGE_USERS: [Capability; 2] = [Capability::CAP_SETGID, Capability::CAP_SETUID];

/// To the process that forks backends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ToZygote {
    /// A backend for this runtime folder. Requests are answered in their order.
    #[n(0)]
    Spawn {
        /// The folder.
        #[n(0)]
        runtime: String,
        /// What it locks for its life; nothing, for a copy that runs beside its vRoT.
        #[n(1)]
        lock: Option<String>,
        /// Whose VMMs it lets in.
        #[n(2)]
        admission: VmmAdmission,
        /// The user that the backend becomes; absent if it is to stay the manager's, which must
        /// not be root then.
        #[n(3)]
        uid: Option<u32>,
        /// How its VM reaches it.
        #[n(4)]
        #[cbor(default)]
        transport: Transport,
    },
}

/// From the process that forks backends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum FromZygote {
    /// There is a backend.
    #[n(0)]
    Spawned {
        /// Its process.
        #[n(0)]
        process: i32,
    },
    /// There is none.
    #[n(1)]
    NotSpawned {
        /// Why.
        #[n(0)]
        reason: String,
    },
    /// A backend has ended.
    #[n(2)]
    Ended {
        /// Its process.
        #[n(0)]
        process: i32,
        /// How, in words.
        #[n(1)]
        status: String,
    },
}
