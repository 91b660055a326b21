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
enum Told {
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
        recovery: ToldRecovery,
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
struct ToldRecovery {
    batch: u64,
}

/// How a vRoT is according to the lines about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastTold {
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
    pub fn tells_of_recovery(&self, batch: u64) -> Result<bool, AuditError> {
        let mut found = false;
        self.look_back(|told| {
            found |= match told {
                Told::RecoveryFound { batch: told } => told == batch,
                Told::StoreRecovered { recovery } => recovery.batch == batch,
                _ => false,
            };
        })?;
        Ok(found)
    }

    /// The vRoTs whose keys were destroyed. Reads the log from the beginning. Blocks.
    pub fn deleted(&self) -> Result<BTreeSet<VrotId>, AuditError> {
        let mut deleted = BTreeSet::new();
        self.look_back(|told| {
            if let Told::VrotDeleted { vrot, .. } | Told::VrotDiscarded { vrot } = told {
                deleted.insert(vrot);
            }
        })?;
        Ok(deleted)
    }

    /// Whether the vRoT with this number, or one of the VM with this number, was deleted. Reads the
    /// log from the beginning. Blocks.
    pub fn tells_of_deletion(&self, number: Uuid) -> Result<bool, AuditError> {
        let mut found = false;
        self.look_back(|told| {
            if let Told::VrotDeleted { vrot, vm } = told {
                found |= *vrot.as_uuid() == number || *vm.as_uuid() == number;
            }
        })?;
        Ok(found)
    }

    /// How each vRoT of which there is a line is according to the last lines about it. Reads the
    /// log from the beginning. Blocks.
    pub fn last_told(&self) -> Result<BTreeMap<VrotId, LastTold>, AuditError> {
        let mut vrots = BTreeMap::<VrotId, LastTold>::new();
        self.look_back(|told| {
            let (vrot, state, certificate) = match told {
                Told::CertificateIssued { vrot, certificate } => (vrot, None, Some(certificate)),
                Told::CertificateRenewed { vrot, certificate } => {
                    (vrot, None, Some(Some(certificate)))
                }
                Told::VrotManufactured { vrot, certificate } => {
                    (vrot, Some("manufactured"), Some(certificate))
                }
                Told::VrotCreated { vrot, certificate } => {
                    (vrot, Some("assigned"), Some(certificate))
                }
                Told::VrotStarted { vrot } | Told::VrotResumed { vrot } => {
                    (vrot, Some("running"), None)
                }
                Told::VrotSuspended { vrot } => (vrot, Some("suspended"), None),
                Told::VrotStopped { vrot } | Told::BackendEnded { vrot } => {
                    (vrot, Some("stopped"), None)
                }
                Told::VrotDeleted { vrot, .. } | Told::VrotDiscarded { vrot } => {
                    (vrot, Some(ABSENT), None)
                }
                Told::VrotFound {
                    vrot,
                    state,
                    certificate,
                } => {
                    vrots.insert(vrot, LastTold { state, certificate });
                    return;
                }
                Told::RecoveryFound { .. } | Told::StoreRecovered { .. } => return,
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
    fn look_back(&self, mut at: impl FnMut(Told)) -> Result<(), AuditError> {
        Parts::open(self.path())?.each_line(|_, line| {
            // Other events do not fit.
            if let Ok(told) = serde_json::from_slice(line) {
                at(told);
            }
            Ok(())
        })?;
        Ok(())
    }
}
