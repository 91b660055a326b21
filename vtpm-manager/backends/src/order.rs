//! What a backend is there for, what its supervisor is asked to do, and what it tells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use attestation::Nonce;
use backend_link::message::Status;
use cert_chain::VrotId;
use tokio::sync::{mpsc, oneshot, watch};

use super::quoting::{NotQuoted, QuotedVm};
use super::share::Share;
use guarded_state::disk::StateBlob;
use guarded_state::journal::Journal;
use host_evidence::{HostEvidence, Subject};
use rate_limit::Quota;

/// What is done for a backend.
pub enum Role {
    /// It is being manufactured, or waits for a VM: state is kept aside, to be committed with the
    /// record.
    Manufacture,
    /// It serves a guest.
    Guest(Box<GuestRole>),
}

/// What a backend with a guest needs.
#[derive(Debug)]
pub struct GuestRole {
    /// Where state goes.
    pub journal: Journal,
    /// Where host evidence comes from.
    pub evidence: HostEvidence,
    /// What the host states about the vRoT.
    pub subject: Subject,
    /// How often it may ask.
    pub quota: Quota,
    /// How often its state is written.
    pub share: Share,
    /// Is told when the backend ends by itself.
    pub ended: mpsc::UnboundedSender<(VrotId, Ended)>,
    /// Whether its identity key has a certificate: without, evidence is of no use.
    pub certified: watch::Receiver<bool>,
}

/// How it stands with a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its process.
    pub process: u32,
    /// Whether a VMM is attached.
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    pub degraded: bool,
    /// VMMs that it has served with a guest since it was started.
    pub vmms: u64,
}

impl Observed {
    /// As a backend tells it itself.
    pub(super) fn of_status(status: &Status) -> Self {
        Self {
            process: status.pid,
            attached: status.attached,
            degraded: status.degraded,
            // Before they were counted, nothing was measured, either.
            vmms: status.vmms.unwrap_or(u64::MAX),
        }
    }

    /// Whether a VMM came after the first one: what was measured for that start is not what runs.
    pub fn has_changed_vmm(&self) -> bool {
        self.vmms > 1
    }
}

/// One backend of all that this manager had: a vRoT has one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceId(u64);

/// How a backend ended.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub instance: InstanceId,
    /// On demand, or not.
    pub ending: Ending,
    /// Its last state, if it was being manufactured and said anything.
    pub state: Option<StateBlob>,
}

/// How a backend ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// On demand.
    Ordered,
    /// By itself.
    Unordered {
        /// What is known of it.
        reason: String,
    },
}

/// A backend that was told to end finishes the command under way. Then it is killed.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What a backend's supervisor is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    Execute {
        command: Vec<u8>,
        response: oneshot::Sender<Vec<u8>>,
    },
    /// Resets the TPM. The answer is a TPM response.
    Reset(oneshot::Sender<Vec<u8>>),
    /// Has the vRoT quote for its host, with this nonce.
    Quote(Nonce, oneshot::Sender<Result<QuotedVm, NotQuoted>>),
    /// Whether the guest is to wait.
    Hold(bool),
    Release,
    /// From now on there is a guest. The answer is what was kept aside until then.
    Serve(Box<GuestRole>, oneshot::Sender<Option<StateBlob>>),
    /// Ends the backend; it is killed if that takes longer than this.
    Stop(oneshot::Sender<Ended>, Duration),
    /// Ends a backend that does not do what it is told.
    Kill,
    /// Tells when everything that the backend pushed so far is durable.
    Settle(oneshot::Sender<()>),
    /// Has the guest wait and the volatile state, sealed, handed over, if there is one.
    Suspend(oneshot::Sender<Option<Vec<u8>>>),
    /// Hands over what was kept aside.
    TakeState(oneshot::Sender<Option<StateBlob>>),
}

impl InstanceId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
