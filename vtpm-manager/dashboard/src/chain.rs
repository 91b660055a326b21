//! A vRoT's chain of trust, from the issuer down to the VM, with what booted in both layers: asked for
//! when somebody opens a vRoT.

use std::collections::BTreeMap;
use std::time::Duration;

use api_types::Timestamp;
use api_types::wire::{
    CertificateState, HostView, IdentityView, KeyView, LaunchPartView, LaunchState, PcrsView,
    PolicyView, VrotView,
};
use cert_chain::{Digest32, HashAlgorithm, TpmName, VrotId};
use serde::Serialize;
use tokio::time::timeout;

use crate::manager::{Manager, ManagerError};
use crate::row::Row;
use crate::text::{shown, shown_if};

/// The chain of a vRoT.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Chain {
    row: Row,
    issuer: Option<Issuer>,
    host: HostLink,
    boot: Known<HostBoot>,
    vrot: Known<VrotKeys>,
    launch: Launch,
    vm_boot: Known<VmBoot>,
}

/// Who certified the host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Issuer {
    subject: String,
}

/// The host with its keys in the physical TPM.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HostLink {
    name: Option<String>,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    tpm: String,
    tpm_problem: Option<String>,
    ek: Option<TpmName>,
    ik: Option<TpmName>,
    manager_digest: Digest32,
    backend_digest: Option<Digest32>,
    event_log: String,
    event_log_problem: Option<String>,
    event_log_unchecked: Option<String>,
    unaccounted_pcrs: Vec<u8>,
}

/// What a manager told, or why it did not.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Known<T> {
    Known(Box<T>),
    Unknown { problem: String },
}

/// What booted on the host: its PCRs, beside what the operator approved.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HostBoot {
    bank: HashAlgorithm,
    pcrs: BTreeMap<u8, String>,
    approved: bool,
    /// What the approval in force is called.
    approval: Option<String>,
    /// The PCRs that differ from the newest approval, if none is in force.
    differing: Vec<u8>,
}

/// What booted in the VM: its PCRs, as its vRoT has quoted them.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VmBoot {
    bank: HashAlgorithm,
    pcrs: BTreeMap<u8, String>,
}

/// The vRoT's keys.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VrotKeys {
    vik: Key,
    tls: Option<Key>,
    ek_rsa: Key,
    ek_p256: Key,
    /// The programs by which it was certified.
    manager_digest: Digest32,
    backend_digest: Digest32,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    name: TpmName,
    state: CertificateState,
    not_after: Option<Timestamp>,
}

/// What the VM was launched with.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Launch {
    state: LaunchState,
    required: bool,
    digest: Option<Digest32>,
    parts: Vec<LaunchPartView>,
}

/// A guest may keep its TPM at a command for seconds; the rest is not to wait for that.
const QUOTE: Duration = Duration::from_secs(3);

/// Asks a manager for all of it. What is missing of keys and boots says why; without the vRoT or the
/// host there is no chain.
pub(crate) async fn of(manager: &Manager, vrot: VrotId) -> Result<Chain, ManagerError> {
    let path = format!("/v1/vrots/{vrot}");
    let identity = format!("{path}/identity");
    let pcrs = format!("{path}/pcrs");
    let (view, host, identity, policy, pcrs) = tokio::join!(
        manager.json::<VrotView>(&path),
        manager.json::<HostView>("/v1/host"),
        manager.json::<IdentityView>(&identity),
        manager.json::<PolicyView>("/v1/host/policy"),
        timeout(QUOTE, manager.json::<PcrsView>(&pcrs)),
    );
    let (view, host) = (view?, host?);
    let enrolment = host.enrolment.as_ref();
    Ok(Chain {
        row: Row::from(&view),
        issuer: enrolment.map(|enrolment| Issuer {
            subject: shown(&enrolment.issuer),
        }),
        host: HostLink {
            name: enrolment.map(|enrolment| shown(&enrolment.host.to_string())),
            not_before: enrolment.map(|enrolment| enrolment.not_before),
            not_after: enrolment.map(|enrolment| enrolment.not_after),
            tpm: shown(&host.tpm),
            tpm_problem: shown_if(host.tpm_problem.as_ref()),
            ek: host.keys.as_ref().map(|keys| keys.ek.clone()),
            ik: host.keys.map(|keys| keys.ik),
            manager_digest: host.manager_digest,
            backend_digest: host.backend_digest,
            event_log: shown(&host.event_log.path.display().to_string()),
            event_log_problem: shown_if(host.event_log.problem.as_ref()),
            event_log_unchecked: shown_if(host.event_log.unchecked.as_ref()),
            unaccounted_pcrs: host.event_log.unaccounted_pcrs,
        },
        boot: Known::of(policy.map(HostBoot::from)),
        vrot: Known::of(identity.map(VrotKeys::from)),
        launch: Launch {
            state: view.launch.state,
            required: view.launch.required,
            digest: view.launch.digest,
            parts: view.launch.parts.into_iter().map(shown_part).collect(),
        },
        vm_boot: match pcrs {
            Ok(told) => Known::of(told.map(VmBoot::from)),
            Err(_) => Known::Unknown {
                problem: "its TPM is busy with a command of its guest".to_owned(),
            },
        },
    })
}

fn shown_part(part: LaunchPartView) -> LaunchPartView {
    LaunchPartView {
        part: shown(&part.part),
        value: shown(&part.value),
    }
}

impl<T> Known<T> {
    fn of(told: Result<T, ManagerError>) -> Self {
        match told {
            Ok(told) => Self::Known(Box::new(told)),
            Err(error) => Self::Unknown {
                problem: shown(&error.to_string()),
            },
        }
    }
}

impl From<PolicyView> for HostBoot {
    fn from(policy: PolicyView) -> Self {
        let in_force = policy
            .approvals
            .iter()
            .rev()
            .find(|approval| approval.differences.is_empty());
        let newest = policy.approvals.last();
        let differing = match in_force {
            Some(_) => Vec::new(),
            None => newest.map_or_else(Vec::new, |newest| {
                let pcrs = newest.differences.iter().map(|difference| difference.pcr);
                pcrs.collect()
            }),
        };
        Self {
            bank: policy.bank,
            pcrs: shown_pcrs(policy.pcrs),
            approved: policy.satisfied,
            approval: in_force.map(|approval| shown(&approval.label)),
            differing,
        }
    }
}

impl From<PcrsView> for VmBoot {
    fn from(quoted: PcrsView) -> Self {
        Self {
            bank: quoted.bank,
            pcrs: shown_pcrs(quoted.pcrs),
        }
    }
}

fn shown_pcrs(pcrs: BTreeMap<u8, String>) -> BTreeMap<u8, String> {
    let pcrs = pcrs.into_iter();
    pcrs.map(|(pcr, value)| (pcr, shown(&value))).collect()
}

impl From<IdentityView> for VrotKeys {
    fn from(identity: IdentityView) -> Self {
        Self {
            vik: identity.vik.into(),
            tls: identity.tls.map(Key::from),
            ek_rsa: identity.ek_rsa.into(),
            ek_p256: identity.ek_p256.into(),
            manager_digest: identity.manager_digest,
            backend_digest: identity.backend_digest,
        }
    }
}

impl From<KeyView> for Key {
    fn from(key: KeyView) -> Self {
        Self {
            name: key.name,
            state: key.state,
            not_after: key.not_after,
        }
    }
}
