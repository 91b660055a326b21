//! Why the manager did not do what it was asked for.

use std::io;
use std::path::PathBuf;

use api_types::VrotKey;
use attestation::evidence_set::MAX_VMS;
use cert_chain::{VmId, VrotId};
use guarded_state::disk::{StateBlobError, StoreError};
use guarded_state::journal::GuardError;
use guarded_state::ledger::Refusal;
use tpm_wire::ResponseCode;
use trust_anchor::{AnchorError, HostIkSigner};
use vrot_manufacture::ManufactureError;

use crate::audit::AuditError;
use crate::backend::BackendError;
use crate::evidence::HostEvidenceError;
use crate::host::HostError;
use crate::keys::KeyError;
use crate::manager::folder_error::FolderError;
use crate::vrot::{LifecycleError, RecordError};
use launch_measurement::MeasureError;

/// Why the manager did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The trust anchor could not be started.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// Somebody has the state folder.
    #[error(
        "another manager has the state in `{}`: end it first, or give this one a `state_dir` of its \
         own",
        path.display()
    )]
    AnotherManager {
        /// The folder.
        path: PathBuf,
    },
    /// What happened could not be written down, so it must not happen.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A backend did not do what it should.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Its VM runs.
    #[error(
        "VM {vm} runs: what it was launched with can be measured before its vRoT is started, and not \
         afterwards. Stop it first: `vtpmctl stop {vm}`"
    )]
    LaunchUnderWay {
        /// The VM.
        vm: VmId,
    },
    /// It would be started without.
    #[error(
        "the vRoT of VM {vm} is not started unless what the VM is launched with was measured, since it ran \
         last: `vtpmctl measure {vm}`, or `vtpmctl start {vm}` with the VM's parts"
    )]
    LaunchNotMeasured {
        /// The VM.
        vm: VmId,
    },
    /// It would be started without, by a launcher whose hook announces what it measured.
    #[error(
        "the vRoT of VM {vm} is not started unless what the VM is launched with was measured: its launcher's hook \
         has to announce that before each start, and none waits. One is for a single start within five minutes, and \
         lost when the manager is restarted: start the VM again, and see that the hook is installed"
    )]
    LaunchNotAnnounced {
        /// The VM.
        vm: VmId,
    },
    /// A new one would be started without.
    #[error(
        "the vRoT is not created and started at once unless what its VM is launched with is measured: give \
         the VM's parts, too, or create it and start it later"
    )]
    LaunchNotMeasuredForNew,
    /// More VMs than evidence can be of.
    #[error(
        "evidence of {found} VMs was asked for, and one request can be for {MAX_VMS}: name the VMs in \
         several requests"
    )]
    TooManyVms {
        /// How many were asked for.
        found: usize,
    },
    /// Evidence was asked for of all VMs, and there is none.
    #[error("evidence of all VMs was asked for, and there is none: create one first")]
    NoVms,
    /// It does not quote its PCRs.
    #[error("what booted in the VM of vRoT {vrot} is not known: {reason}")]
    NotQuoted {
        /// Which.
        vrot: VrotId,
        /// Why.
        reason: String,
    },
    /// The host made no evidence.
    #[error(transparent)]
    NoEvidence(#[from] HostEvidenceError),
    /// What the VM is launched with was not measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// Whether there will be a vRoT is not known yet.
    #[error("the vRoT of VM {vm} is being made: ask again in a moment")]
    BeingMade {
        /// Of which VM.
        vm: VmId,
    },
    /// A backend of an earlier manager is still waited for.
    #[error("vRoT {vrot} is being taken over from an earlier manager: try again in a moment")]
    BeingTakenOver {
        /// Which.
        vrot: VrotId,
    },
    /// The state folder cannot be locked.
    #[error("the state folder `{}` cannot be locked", path.display())]
    Claim {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its key is destroyed, and the rest of it is still there.
    #[error(
        "vRoT {vrot} is deleted: its key is destroyed. What is left of it goes as soon as the audit \
         log and the store take that; `vtpmctl delete` tries it now, and tells what is in the way"
    )]
    DeletionUnfinished {
        /// Which.
        vrot: VrotId,
    },
    /// The folder that a launcher keeps for a VM is not served.
    #[error(transparent)]
    LaunchersFolder(#[from] FolderError),
    /// It belongs to no folder.
    #[error("vRoT {vrot} was not made for a folder: nothing is to be accepted")]
    NoFolder {
        /// Which.
        vrot: VrotId,
    },
    /// A TPM that had its life elsewhere cannot become a vRoT.
    #[error(
        "the state cannot become a vRoT's; nothing was created. {reason}. It must be the permanent \
         state of a TPM 2.0 that is off, whose owner's and endorsement hierarchy have no password, and \
         in which the handles 0x81000003 and 0x81000004 are free"
    )]
    NotTakenOver {
        /// What was in the way.
        reason: String,
    },
    /// The TPM is off: it has no state but the permanent one.
    #[error("vRoT {vrot} has no volatile state to keep: its TPM is off; `stop` ends it")]
    NothingToSuspend {
        /// Which.
        vrot: VrotId,
    },
    /// The VMM emulates the TPM, and resets it with the VM.
    #[error(
        "the TPM of vRoT {vrot} is reset by its VMM, with the VM (QEMU: `system_reset`): nothing was \
         done"
    )]
    ResetByVmm {
        /// Which.
        vrot: VrotId,
    },
    /// The TPM did not do it.
    #[error(
        "the TPM of vRoT {vrot} was not reset: it answered 0x{code:x}. One that was suspended and \
         that its guest has not used since can be reset once it was"
    )]
    NotReset {
        /// Which.
        vrot: VrotId,
        /// The response code.
        code: u32,
    },
    /// A folder could not be made.
    #[error("the folder `{}` cannot be made", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host cannot do it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A key could not be wrapped or unwrapped.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The vRoT's state does not allow it.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// No identity was made.
    #[error("the vRoT was not manufactured")]
    Manufacture(#[source] ManufactureError),
    /// The backend was being manufactured, but never said what its state is.
    #[error("the backend gave no state to keep: nothing was created")]
    NoState,
    /// A program's digest cannot be taken.
    #[error("the program `{}` cannot be read, so no certificate can state its digest", path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record in the store cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A state in the store cannot be used.
    #[error(transparent)]
    State(#[from] StateBlobError),
    /// The store has a record, but no state.
    #[error(
        "the store has no state of vRoT {vrot}: it is not started empty, because that would be \
         another vRoT under the same name. Restore the store, or delete the vRoT"
    )]
    StateMissing {
        /// Whose.
        vrot: cert_chain::VrotId,
    },
    /// The rollback guard failed.
    #[error(transparent)]
    Rollback(#[from] GuardError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing becomes durable at the moment, so nothing is begun.
    #[error("nothing was begun, since nothing becomes durable at the moment: {reason}")]
    StoreStalled {
        /// What the store waits for.
        reason: String,
    },
    /// What was begun waits for the store.
    #[error(
        "begun, but nothing becomes durable at the moment; it is finished as soon as that is so \
         again (`vtpmctl list` shows it): {reason}"
    )]
    Unfinished {
        /// What the store waits for.
        reason: String,
    },
    /// The manager has just started.
    #[error(
        "the manager has just started and is opening its store: it is held against the physical \
         TPM, and what runs is taken over. Try again in a moment"
    )]
    StoreOpening,
    /// The store is not the one that the physical TPM vouches for.
    #[error("the store is refused: {refusal}. {}", refusal.last_resort())]
    StoreRefused {
        /// What was found.
        refusal: Box<Refusal>,
    },
    /// A task of ours panicked.
    #[error("the manager made an error: see its log")]
    Task {
        /// What tokio says.
        #[source]
        source: tokio::task::JoinError,
    },
    /// The TPM has become a vRoT before.
    #[error(
        "the TPM is that of VM {vm} already, or becomes it just now (it has the same endorsement key); nothing was \
         created. There must not be two of one TPM: delete that vRoT first if this is the copy to go on with"
    )]
    TpmTaken {
        /// Of which VM.
        vm: VmId,
    },
    /// A thread could not be started.
    #[error("a thread cannot be started")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such vRoT.
    #[error("there is no vRoT or VM {key} on this host: `vtpmctl list` shows those that are")]
    UnknownVrot {
        /// What was asked for.
        key: VrotKey,
    },
    /// The VM has one already.
    #[error("VM {vm} has a vRoT on this host already: delete it first, or use it")]
    VmTaken {
        /// The VM.
        vm: VmId,
    },
}

impl ManagerError {
    /// Whether a vRoT waits for its VMM to resume it or to bring its state, or for the guest's
    /// firmware to start it. The manager does none of these in their place.
    pub(super) fn is_not_ready(&self) -> bool {
        let Self::Manufacture(ManufactureError::Tpm { code, .. }) = self else {
            return false;
        };
        matches!(*code, ResponseCode::RETRY | ResponseCode::INITIALIZE)
    }

    /// Why nothing was manufactured: if the host IK did not sign, what kept it from that.
    pub(super) fn of_manufacture(error: ManufactureError, signer: &HostIkSigner) -> Self {
        let unsigned = match &error {
            ManufactureError::Issue { .. } => signer.take_failure(),
            _ => None,
        };
        unsigned.map_or(Self::Manufacture(error), Self::Anchor)
    }
}
