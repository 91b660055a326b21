//! What passes between a backend and its manager.
//!
//! The backend listens, the manager dials: so a restarted manager finds its backends again.

use std::fmt;
use std::time::Duration;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::quote::{QuoteOrder, QuoteOutcome};
use crate::state_key::StateKey;

/// From the manager.
#[derive(Debug, Encode, Decode)]
pub enum ToBackend {
    /// Asks for a [`FromBackend::Status`].
    #[n(0)]
    Hello,
    /// Hands over key and state; the first thing that a new backend needs.
    #[n(1)]
    Open(#[n(0)] Open),
    /// A pushed state is on stable storage.
    #[n(2)]
    Persisted {
        /// The number it was pushed with.
        #[n(0)]
        sequence: u64,
    },
    /// The answer to a [`FromBackend::HostEvidenceRequested`], which begins at offset 0, or to a
    /// [`FromBackend::HostEvidenceWanted`].
    #[n(3)]
    HostEvidence {
        /// The request's ticket.
        #[n(0)]
        ticket: u64,
        /// A part of the host layer; absent if the host declines.
        #[n(1)]
        part: Option<LayerPart>,
    },
    /// Has the TPM carry out a command, between those of the guest. A TPM that is off is
    /// switched on first.
    #[n(4)]
    Execute {
        /// Comes back with the response.
        #[n(0)]
        id: u64,
        /// A TPM command.
        #[n(1)]
        command: ByteVec,
    },
    /// Ends the backend. State that was pushed but not persisted is pushed once more before.
    #[n(5)]
    Stop,
    /// Has VMM and guest wait while the manager's commands are carried out, for at most
    /// [`MAX_HOLD`]; or lets them go on.
    #[n(6)]
    Hold {
        /// Whether they are to wait.
        #[n(0)]
        held: bool,
    },
    /// Has the backend hand over its volatile state. From then on VMM and guest wait: until the
    /// backend is told to end, or to let them go on, or loses its manager.
    #[n(7)]
    Suspend,
    /// The manager ends as planned, and another one is started: everything that it was sent is on
    /// stable storage or was not read. Until the next one dials, no guest waits for its state to be
    /// durable. It is the last message: a backend that does not know it loses a connection that
    /// ends anyway.
    #[n(8)]
    Leaving,
    /// Has the vRoT quote for its host, between two commands of its guest. Answered by a
    /// [`FromBackend::Quoted`]. A TPM that is off stays off.
    #[n(10)]
    Quote {
        /// Comes back with the answer.
        #[n(0)]
        id: u64,
        /// What is to be quoted.
        #[n(1)]
        order: QuoteOrder,
    },
    /// Switches the TPM off and on, as the reset of a platform does, for a VM whose VMM cannot say
    /// that. Answered by a [`FromBackend::Executed`] with a TPM response without parameters. Only a
    /// backend whose VMM shares its guest's memory is sent this.
    #[n(9)]
    Reset {
        /// Comes back with the response.
        #[n(0)]
        id: u64,
    },
}

/// From a backend.
#[derive(Debug, Encode, Decode)]
pub enum FromBackend {
    /// The state was opened; the VMM's socket is there.
    #[n(0)]
    Opened,
    /// How it stands with the backend.
    #[n(1)]
    Status(#[n(0)] Status),
    /// Non-volatile state changed. A guest waits for [`ToBackend::Persisted`].
    #[n(2)]
    StateChanged {
        /// Rises with each change.
        #[n(0)]
        sequence: u64,
        /// The whole permanent state, sealed.
        #[n(1)]
        sealed: ByteVec,
    },
    /// The guest asks its host for evidence.
    #[n(3)]
    HostEvidenceRequested {
        /// Names the request.
        #[n(0)]
        ticket: u64,
        /// The digest that the guest gave.
        #[n(1)]
        digest: ByteArray<32>,
    },
    /// The response to [`ToBackend::Execute`].
    #[n(4)]
    Executed {
        /// The request's number.
        #[n(0)]
        id: u64,
        /// A TPM response.
        #[n(1)]
        response: ByteVec,
    },
    /// A VMM attached or went away.
    #[n(5)]
    Attachment {
        /// Whether one is attached now.
        #[n(0)]
        attached: bool,
        /// How many have served a guest since the backend was started, this one among them once it
        /// does; absent before they were counted.
        #[n(1)]
        vmms: Option<u64>,
    },
    /// The backend could not do what it was told, and ends.
    #[n(6)]
    Failed {
        /// What went wrong, for the log.
        #[n(0)]
        reason: String,
    },
    /// The backend ends because it was told to.
    #[n(7)]
    Stopped,
    /// What the backend was told to hand over.
    #[n(8)]
    Suspended {
        /// The volatile state, sealed; absent if the TPM is off and does not wait with one.
        #[n(0)]
        volatile: Option<ByteVec>,
    },
    /// A line of the backend's log.
    #[n(9)]
    Log {
        /// How bad it is.
        #[n(0)]
        level: LogLevel,
        /// What it says.
        #[n(1)]
        says: String,
    },
    /// The answer to [`ToBackend::Quote`].
    #[n(11)]
    Quoted {
        /// The request's number.
        #[n(0)]
        id: u64,
        /// What came of it.
        #[n(1)]
        outcome: QuoteOutcome,
    },
    /// The guest reads on: the part of its host layer that begins here.
    #[n(10)]
    HostEvidenceWanted {
        /// The request's ticket.
        #[n(0)]
        ticket: u64,
        /// Where the part begins.
        #[n(1)]
        offset: u32,
    },
}

/// How bad a line of a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum LogLevel {
    /// Something failed.
    #[n(0)]
    Error,
    /// Something is not as it should be.
    #[n(1)]
    Warn,
    /// Something happened.
    #[n(2)]
    Info,
    /// A detail.
    #[n(3)]
    Debug,
}

/// Key and state of one vRoT.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// The vRoT's id.
    #[n(0)]
    pub vrot: ByteArray<16>,
    /// The generation under which state is sealed.
    #[n(1)]
    pub generation: u64,
    /// The key that seals it.
    #[n(2)]
    pub key: StateKey,
    /// The permanent state, sealed; absent for a vRoT that is to be manufactured.
    #[n(3)]
    pub permanent: Option<ByteVec>,
    /// How long a command waits for its state to be durable, in milliseconds.
    #[n(4)]
    pub durability_deadline_ms: u32,
    /// The volatile state of a suspended vRoT, sealed. A VMM that switches the TPM on without
    /// deleting it finds the TPM as it was.
    #[n(5)]
    pub volatile: Option<ByteVec>,
    /// Whether this is a copy that runs beside the vRoT, or in its place, and whose state nobody
    /// keeps: then it does not matter whether a VMM carries the vRoT's volatile state.
    #[n(6)]
    #[cbor(default)]
    pub is_copy: bool,
    /// For how long a VMM waits for an answer to a command, in milliseconds, if it does not wait for
    /// each: then its guest is told in time to send the command again.
    #[n(7)]
    pub answer_within_ms: Option<u32>,
}

/// Consecutive bytes of a host layer in CBOR, at most [`MAX_PART`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LayerPart {
    /// Size of the whole layer.
    #[n(0)]
    pub total: u32,
    /// Where the part begins.
    #[n(1)]
    pub offset: u32,
    /// The part; empty only at the end.
    #[n(2)]
    pub bytes: ByteVec,
}

/// How it stands with a backend.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Status {
    /// Process id.
    #[n(0)]
    pub pid: u32,
    /// The vRoT, once it is open.
    #[n(1)]
    pub vrot: Option<ByteArray<16>>,
    /// Its generation.
    #[n(2)]
    pub generation: u64,
    /// Whether a VMM is attached.
    #[n(3)]
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    #[n(4)]
    pub degraded: bool,
    /// Number of the last state that was pushed.
    #[n(5)]
    pub pushed: u64,
    /// Number of the last state that is known to be durable.
    #[n(6)]
    pub persisted: u64,
    /// The version of these messages that it speaks; absent before there were several.
    #[n(7)]
    pub protocol: Option<u32>,
    /// How many VMMs have served a guest since it was started; absent before they were counted.
    #[n(8)]
    pub vmms: Option<u64>,
}

/// Version of these messages. It changes when one side would misunderstand the other.
pub const PROTOCOL: u32 = 4;
/// What a backend keeps of a host layer, and has under way. It takes a guest 32 commands to read.
pub const MAX_PART: usize = 64 * 1024;
/// What the manager does meanwhile takes some ten milliseconds. Linux gives a TPM up that takes
/// 750 ms for a short command; but on a host that is so busy, a guest that goes on before its
/// sessions are back is worse off than one that waits.
pub const MAX_HOLD: Duration = Duration::from_secs(5);
impl LayerPart {
    /// Whether it lies within its layer, and brings its reader on.
    pub fn is_possible(&self) -> bool {
        let left = self.total.checked_sub(self.offset);
        let fits = left
            .and_then(|left| usize::try_from(left).ok())
            .is_some_and(|left| self.bytes.len() <= left.min(MAX_PART));
        fits && (!self.bytes.is_empty() || self.offset == self.total)
    }

    /// Whether it is the whole layer.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && u32::try_from(self.bytes.len()) == Ok(self.total)
    }

    /// The bytes from `offset` on, if at least one is here.
    pub fn from(&self, offset: u32) -> Option<&[u8]> {
        let skipped = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(skipped..).filter(|bytes| !bytes.is_empty())
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("vrot", &self.vrot)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
