//! The host as callers see it: keys, enrolment, store, policy.

use std::time::Duration;

use api_types::wire::{
    ApprovalView, DifferenceView, EnrolmentView, EventLogView, FaultView, HostKeys, HostView,
    LogView, PolicyView, PowerLossView, RecoveryView, StoreView,
};
use api_types::{Timestamp, WithCauses};
use cert_chain::pem;
use guarded_state::ledger::RecoveryRecord;
use tokio::time::timeout;
use trust_anchor::{AnchorError, ApprovalStatus, HostPolicy};

use super::problem::ProblemResponse;
use crate::evidence::{HostLog, HostLogProblem};
use crate::fault::Fault;
use crate::host::{Enrolment, HostError};
use crate::manager::{Manager, StoreState, StoreStatus};

/// How long `GET /v1/host` waits for the TPM.
const TPM_TIMEOUT: Duration = Duration::from_secs(2);
const TPM_BUSY: &str = "the physical TPM is busy, or does not answer: look again in a moment";
const BEING_OPENED: &str = "the manager has just started: its files are opened, and the store is held against the physical \
     TPM";
const TAKEN_OVER: &str = "the physical TPM vouches for the store; what runs is being taken over";

/// With a TPM that does not answer: what was known before, and that problem.
pub(super) async fn view(manager: &Manager) -> Result<HostView, ProblemResponse> {
    let known = || manager.host().anchor().known_public();
    let (public, tpm_problem) = match timeout(TPM_TIMEOUT, manager.host().public()).await {
        Ok(Ok(public)) => (Some(public), None),
        Ok(Err(HostError::Anchor(AnchorError::NotProvisioned))) => (None, None),
        Ok(Err(error)) => (known(), Some(WithCauses(&error).to_string())),
        Err(_) => (known(), Some(TPM_BUSY.to_owned())),
    };
    let keys = public.map(|public| HostKeys {
        ek: public.ek_public.name(),
        ik: public.ik_public.name(),
        srk: public.srk_name,
        policy_key: public.policy_key.name(),
    });
    let config = manager.config();
    Ok(HostView {
        tpm: config.anchor.tpm.to_string(),
        tpm_problem,
        state_dir: config.state_dir.clone(),
        event_log: event_log_view(manager.evidence().log()).await,
        backend_digest: manager.backend_digest().await.ok(),
        isolation: manager.isolation().name().to_owned(),
        manager_digest: manager.program_digest(),
        keys,
        enrolment: manager.host().enrolment().as_deref().map(Into::into),
        store: store_view(&manager.store_status().await),
        audit_problem: manager.guarded().audit().what_is_missing(),
        log: log_view(),
        last_fault: manager.last_fault().map(fault_view),
    })
}

pub(super) fn log_view() -> LogView {
    let losses = program_output::log::losses();
    LogView {
        lost: losses.lost,
        left_out: losses.left_out,
    }
}

async fn event_log_view(log: &HostLog) -> EventLogView {
    let problem = log.check().await.err();
    let text = problem
        .as_ref()
        .map(|problem| WithCauses(problem).to_string());
    let pcrs = problem.as_ref().map(HostLogProblem::pcrs);
    let unaccounted_pcrs = pcrs.unwrap_or_default().to_vec();
    let (problem, unchecked) = match &problem {
        Some(HostLogProblem::Unchecked { .. }) => (None, text),
        _ => (text, None),
    };
    EventLogView {
        path: log.path().to_owned(),
        problem,
        unchecked,
        unaccounted_pcrs,
    }
}

/// Also what people see while nothing else answers.
pub(super) fn store_view(status: &StoreStatus) -> StoreView {
    let (state, problem) = match &status.state {
        StoreState::Blank => ("blank", None),
        StoreState::Opening { vouched: None } => ("opening", Some(BEING_OPENED.to_owned())),
        StoreState::Opening { vouched: Some(_) } => ("opening", Some(TAKEN_OVER.to_owned())),
        StoreState::Unreachable { reason, .. } => ("locked", Some(reason.clone())),
        StoreState::Open(_) => {
            let problem = status.stall.as_ref().map(|stall| {
                let time = stall.since.elapsed().as_secs();
                format!(
                    "nothing has become durable for {time} s: {}",
                    WithCauses(&*stall.error)
                )
            });
            ("open", problem)
        }
        StoreState::Refused { refusal } => {
            let text = format!("{refusal}. {}", refusal.last_resort());
            ("refused", Some(text))
        }
    };
    let rollback = status.rollback.as_ref();
    StoreView {
        state: state.to_owned(),
        refusal: match &status.state {
            StoreState::Refused { refusal } => Some(refusal.code().to_owned()),
            _ => None,
        },
        problem,
        batch: rollback.map(|status| status.epoch.number()),
        uncovered_batches: rollback.map(|status| status.window.batches),
        window_s: rollback.map(|status| status.window.limit.as_secs()),
        window_age_s: rollback.map(|status| status.exposure().as_secs()),
        policy: rollback.map(|status| status.policy.name().to_owned()),
        boot: (status.state.vouched()).map(|vouched| vouched.boot.name().to_owned()),
        power_loss: rollback
            .and_then(|status| status.power_loss)
            .map(|loss| PowerLossView {
                batch: loss.batch.number(),
                time: loss.time.number(),
                window_s: loss.window.seconds().into(),
            }),
        unadopted: status.orphans.backends,
        unadopted_degraded: status.orphans.degraded,
    }
}

pub(super) fn fault_view(fault: &Fault) -> FaultView {
    FaultView {
        time: fault.time,
        place: fault.place.clone(),
    }
}

pub(super) fn recovery_view(record: RecoveryRecord) -> RecoveryView {
    RecoveryView {
        accepted: record.accepted.to_owned(),
        finding: record.finding,
        batch: record.batch,
        generation: record.generation,
        raised: record.raised,
        discarded: record.discarded,
        lost: record.lost,
    }
}

impl From<&Enrolment> for EnrolmentView {
    fn from(enrolment: &Enrolment) -> Self {
        let certificate = &enrolment.certificate;
        Self {
            host: certificate.host().clone(),
            issuer: certificate.issuer().to_owned(),
            not_before: Timestamp::new(certificate.not_before().as_secs()),
            not_after: Timestamp::new(certificate.not_after().as_secs()),
            certificate_pem: pem::encode_certificate(certificate.der()),
            root_pem: pem::encode_certificate(&enrolment.root),
        }
    }
}

pub(super) fn policy_view(policy: HostPolicy) -> PolicyView {
    PolicyView {
        policy_key: policy.policy_key.name(),
        policy_digest: policy.policy_digest,
        objects: vec![
            "host IK (quotes, certificates)".to_owned(),
            "root secret (keys of all vRoTs)".to_owned(),
        ],
        satisfied: policy.is_satisfied(),
        approvals: policy.approvals.into_iter().map(approval_view).collect(),
        bank: policy.current.bank(),
        pcrs: policy.current.to_hex(),
    }
}

fn approval_view(status: ApprovalStatus) -> ApprovalView {
    ApprovalView {
        label: status.label,
        bank: status.bank,
        differences: status
            .differences
            .into_iter()
            .map(|difference| DifferenceView {
                pcr: difference.pcr,
                found: difference.found.to_string(),
                approved: difference.approved.map(|approved| approved.to_string()),
            })
            .collect(),
    }
}
