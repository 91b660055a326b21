//! What earlier lines tell the manager.

use std::collections::{BTreeMap, BTreeSet};

use api_types::audit::Parts;
use cert_chain::{Digest32, VmId, VrotId};
use serde::Deserialize;
use uuid::Uuid;

use super::{AuditError, AuditLog};

/// Lines that are looked for later.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum PastEvent {
    BackendEnded {
        vrot: VrotId,
    },
    CertificateIssued {
        vrot: VrotId,
        certificate: Option<Digest32>,
    },
    CertificateRenewed {
        vrot: VrotId,
        certificate: Digest32,
    },
    RecoveryFound {
        batch: u64,
    },
    StoreRecovered {
        recovery: PastRecovery,
    },
    VrotCreated {
        vrot: VrotId,
        certificate: Option<Digest32>,
    },
    VrotDeleted {
        vrot: VrotId,
        vm: VmId,
    },
    VrotDiscarded {
        vrot: VrotId,
    },
    VrotFound {
        vrot: VrotId,
        state: String,
        certificate: Option<Digest32>,
    },
    VrotManufactured {
        vrot: VrotId,
        certificate: Option<Digest32>,
    },
    VrotResumed {
        vrot: VrotId,
    },
    VrotStarted {
        vrot: VrotId,
    },
    VrotStopped {
        vrot: VrotId,
    },
    VrotSuspended {
        vrot: VrotId,
    },
}

#[derive(Deserialize)]
struct PastRecovery {
    batch: u64,
}

/// How a vRoT is according to the lines about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastRecorded {
    /// The name of its state, or [`ABSENT`].
    pub state: String,
    /// SHA-256 value of its identity key's certificate; none if that is pending, or no line tells.
    pub certificate: Option<Digest32>,
}

/// The state of a vRoT that is not, or not any more.
pub const ABSENT: &str = "absent";

impl AuditLog {
    /// Whether a line says that the recovery was carried out, or found, that is this batch of the
    /// store. Reads the log from the beginning. Blocks.
    pub fn has_recovery(&self, batch: u64) -> Result<bool, AuditError> {
        let mut found = false;
        self.look_back(|event| {
            found |= match event {
                PastEvent::RecoveryFound { batch: found } => found == batch,
                PastEvent::StoreRecovered { recovery } => recovery.batch == batch,
                _ => false,
            };
        })?;
        Ok(found)
    }

    /// The vRoTs whose keys were destroyed. Reads the log from the beginning. Blocks.
    pub fn deleted(&self) -> Result<BTreeSet<VrotId>, AuditError> {
        let mut deleted = BTreeSet::new();
        self.look_back(|event| {
            if let PastEvent::VrotDeleted { vrot, .. } | PastEvent::VrotDiscarded { vrot } = event {
                deleted.insert(vrot);
            }
        })?;
        Ok(deleted)
    }

    /// Whether the vRoT with this number, or one of the VM with this number, was deleted. Reads the
    /// log from the beginning. Blocks.
    pub fn has_deletion(&self, number: Uuid) -> Result<bool, AuditError> {
        let mut found = false;
        self.look_back(|event| {
            if let PastEvent::VrotDeleted { vrot, vm } = event {
                found |= *vrot.as_uuid() == number || *vm.as_uuid() == number;
            }
        })?;
        Ok(found)
    }

    /// How each vRoT of which there is a line is according to the last lines about it. Reads the
    /// log from the beginning. Blocks.
    pub fn last_recorded(&self) -> Result<BTreeMap<VrotId, LastRecorded>, AuditError> {
        let mut vrots = BTreeMap::<VrotId, LastRecorded>::new();
        self.look_back(|event| {
            let (vrot, state, certificate) = match event {
                PastEvent::CertificateIssued { vrot, certificate } => {
                    (vrot, None, Some(certificate))
                }
                PastEvent::CertificateRenewed { vrot, certificate } => {
                    (vrot, None, Some(Some(certificate)))
                }
                PastEvent::VrotManufactured { vrot, certificate } => {
                    (vrot, Some("manufactured"), Some(certificate))
                }
                PastEvent::VrotCreated { vrot, certificate } => {
                    (vrot, Some("assigned"), Some(certificate))
                }
                PastEvent::VrotStarted { vrot } | PastEvent::VrotResumed { vrot } => {
                    (vrot, Some("running"), None)
                }
                PastEvent::VrotSuspended { vrot } => (vrot, Some("suspended"), None),
                PastEvent::VrotStopped { vrot } | PastEvent::BackendEnded { vrot } => {
                    (vrot, Some("stopped"), None)
                }
                PastEvent::VrotDeleted { vrot, .. } | PastEvent::VrotDiscarded { vrot } => {
                    (vrot, Some(ABSENT), None)
                }
                PastEvent::VrotFound {
                    vrot,
                    state,
                    certificate,
                } => {
                    vrots.insert(vrot, LastRecorded { state, certificate });
                    return;
                }
                PastEvent::RecoveryFound { .. } | PastEvent::StoreRecovered { .. } => return,
            };
            let last = vrots.entry(vrot).or_default();
            if let Some(state) = state {
                state.clone_into(&mut last.state);
            }
            last.certificate = certificate.unwrap_or(last.certificate);
        })?;
        Ok(vrots)
    }

    /// Reads all parts. That the lines are this log's was checked when it was opened.
    fn look_back(&self, mut at: impl FnMut(PastEvent)) -> Result<(), AuditError> {
        Parts::open(self.path())?.each_line(|_, line| {
            // Other events do not fit.
            if let Ok(event) = serde_json::from_slice(line) {
                at(event);
            }
            Ok(())
        })?;
        Ok(())
    }
}
