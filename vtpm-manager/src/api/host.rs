//! The host: keys, policy, enrolment, audit log.

use std::sync::Arc;
use std::time::Duration;

use api_types::wire::{
    ApprovalView, AuditView, DifferenceView, EnrolmentRequest, EnrolmentView, EventLogView,
    FaultView, HostKeys, HostView, InitRequest, LogView, PolicyView, PowerLossView, RecoverRequest,
    RecoveryView, StoreView,
};
use api_types::{PROBLEM_JSON, Problem};
use api_types::{Timestamp, WithCauses};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cert_chain::enrolment::{Certificate, Challenge, Message};
use cert_chain::operator::{Approval, PolicyKeyPublic};
use cert_chain::pem;
use guarded_state::ledger::RecoveryRecord;
use tokio::time::timeout;
use trust_anchor::{AnchorError, ApprovalStatus, HostPolicy};

use super::messages::{
    HostEnrolmentAnswer, HostEnrolmentCertificate, HostEnrolmentChallenge, HostEnrolmentRequest,
};
use super::order::run_to_completion;
use super::problem::{Body, ProblemResponse};
use crate::audit::Event;
use crate::evidence::{HostLog, HostLogProblem};
use crate::fault::Fault;
use crate::host::{Enrolment, HostError};
use crate::manager::{Manager, ManagerError, StoreState, StoreStatus};

type Managed = State<Arc<Manager>>;

/// How long `GET /v1/host` waits for the TPM.
const TPM_TIMEOUT: Duration = Duration::from_secs(2);
const TPM_BUSY: &str = "the physical TPM is busy, or does not answer: look again in a moment";
const BEING_OPENED: &str = "the manager has just started: its files are opened, and the store is held against the physical \
     TPM";
const TAKEN_OVER: &str = "the physical TPM vouches for the store; what runs is being taken over";

/// Shows the host: its keys, and what the issuer certified.
#[utoipa::path(get, path = "/v1/host", tag = "host",
    responses((status = 200, body = HostView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn show(State(manager): Managed) -> Result<Json<HostView>, ProblemResponse> {
    view(&manager).await.map(Json)
}

/// Makes the host's keys in the physical TPM, bound to the operator's key. Doing it again
/// changes nothing.
#[utoipa::path(post, path = "/v1/host/init", tag = "host", request_body = InitRequest,
    responses((status = 200, body = HostView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn initialise(
    State(manager): Managed,
    Body(request): Body<InitRequest>,
) -> Result<Json<HostView>, ProblemResponse> {
    let policy_key = hex::decode(&request.policy_key)
        .map_err(|error| ProblemResponse::bad_request(format!("policy_key: {error}")))?;
    let policy_key = PolicyKeyPublic::from_bytes(&policy_key)
        .map_err(|error| ProblemResponse::bad_request(WithCauses(&error).to_string()))?;
    run_to_completion(&manager, move |manager| async move {
        let provisioned = manager.host().public().await.is_ok();
        manager.host().initialise(&policy_key).await?;
        if !provisioned {
            let policy_key = policy_key.name();
            manager
                .guarded()
                .record(Event::HostInitialised { policy_key })
                .await?;
        }
        manager.initialise_store().await?;
        view(&manager).await.map(Json)
    })
    .await
}

/// Accepts the present store although the physical TPM does not vouch for it. The vRoTs that it
/// concerns get a new generation, which verifiers see. Recorded in the audit log.
#[utoipa::path(post, path = "/v1/host/recover", tag = "host", request_body = RecoverRequest,
    responses((status = 200, body = RecoveryView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn recover(
    State(manager): Managed,
    Body(request): Body<RecoverRequest>,
) -> Result<Json<RecoveryView>, ProblemResponse> {
    let recovered: Result<_, ManagerError> =
        run_to_completion(&manager, move |manager| async move {
            manager.recover(&request.accept).await
        })
        .await;
    Ok(Json(recovery_view(recovered?)))
}

/// Answers nothing about vRoTs from a store that the physical TPM does not vouch for.
pub(super) async fn store_is_open(
    State(manager): Managed,
    request: Request,
    next: Next,
) -> Response {
    let about_vrots = request.uri().path().starts_with("/v1/vrots");
    // Launches pass here, so there is a task of its own only where the store may have to be opened.
    if about_vrots && !manager.guarded().store_state().is_open() {
        let ready: Result<(), ManagerError> =
            run_to_completion(&manager, |manager| async move { manager.ready().await }).await;
        if let Err(error) = ready {
            let found = manager.fleet().orphans().await;
            let mut problem = ProblemResponse::from(error);
            if found.backends > 0 {
                let (backends, degraded) = (found.backends, found.degraded);
                problem.0.detail += &format!(
                    ". {backends} backends go on without a manager, {degraded} of them degraded"
                );
            }
            return problem.into_response();
        }
    }
    next.run(request).await
}

/// Shows what the host's keys are bound to, and whether the host is in that state.
#[utoipa::path(get, path = "/v1/host/policy", tag = "host",
    responses((status = 200, body = PolicyView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn policy(State(manager): Managed) -> Result<Json<PolicyView>, ProblemResponse> {
    Ok(Json(policy_view(manager.host().policy().await?)))
}

/// Takes up an operator's signed approval of PCR values (`host-policy-approval`).
#[utoipa::path(post, path = "/v1/host/policy/approvals", tag = "host", request_body = Approval,
    responses((status = 200, body = PolicyView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn approve(
    State(manager): Managed,
    message: Bytes,
) -> Result<Json<PolicyView>, ProblemResponse> {
    let approval = Approval::from_json(&message)
        .map_err(|error| ProblemResponse::bad_request(WithCauses(&error).to_string()))?;
    let label = approval.label.clone();
    run_to_completion(&manager, move |manager| async move {
        manager.host().approve(approval).await?;
        manager
            .guarded()
            .record(Event::PolicyApproved {
                label: label.into(),
            })
            .await?;
        if let Err(error) = manager.open_store().await {
            tracing::error!(error = %WithCauses(&error), "the store stays locked");
        }
        Ok(Json(policy_view(manager.host().policy().await?)))
    })
    .await
}

/// First message of an enrolment (`host-enrolment-request`): take it to the issuer.
#[utoipa::path(post, path = "/v1/host/enrolment/request", tag = "host",
    request_body = EnrolmentRequest,
    responses((status = 200, body = HostEnrolmentRequest),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn request(
    State(manager): Managed,
    Body(request): Body<EnrolmentRequest>,
) -> Result<Response, ProblemResponse> {
    Ok(message(&manager.host().request(request.name).await?))
}

/// Third message of an enrolment (`host-enrolment-answer`), for the issuer's challenge
/// (`host-enrolment-challenge`).
#[utoipa::path(post, path = "/v1/host/enrolment/answer", tag = "host",
    request_body = HostEnrolmentChallenge,
    responses((status = 200, body = HostEnrolmentAnswer),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn answer(
    State(manager): Managed,
    challenge: Bytes,
) -> Result<Response, ProblemResponse> {
    let challenge: Challenge = read(&challenge)?;
    Ok(message(&manager.host().answer(&challenge).await?))
}

/// Installs the fourth message of an enrolment (`host-enrolment-certificate`).
#[utoipa::path(post, path = "/v1/host/enrolment/certificate", tag = "host",
    request_body = HostEnrolmentCertificate,
    responses((status = 200, body = HostView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn install(
    State(manager): Managed,
    certificate: Bytes,
) -> Result<Json<HostView>, ProblemResponse> {
    let certificate: Certificate = read(&certificate)?;
    run_to_completion(&manager, move |manager| async move {
        let enrolment = manager.host().install(&certificate).await?;
        let host = enrolment.host().clone();
        manager
            .guarded()
            .record(Event::HostEnrolled { host })
            .await?;
        view(&manager).await.map(Json)
    })
    .await
}

/// Checks the audit log.
#[utoipa::path(get, path = "/v1/audit", tag = "host",
    responses((status = 200, body = AuditView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn audit(State(manager): Managed) -> Result<Json<AuditView>, ProblemResponse> {
    let log = Arc::clone(manager.guarded().audit());
    let checked = tokio::task::spawn_blocking(move || {
        let end = log.end();
        let problem = log
            .check(end.head)
            .err()
            .map(|error| WithCauses(&error).to_string());
        AuditView {
            log: log.path().to_owned(),
            begins_after: log.from(),
            entries: end.entries,
            parts: end.parts,
            bytes: end.bytes,
            head: end.head,
            intact: problem.is_none(),
            problem,
        }
    });
    checked.await.map(Json).map_err(|error| {
        ProblemResponse::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
        )
    })
}

/// With a TPM that does not answer: what was known before, and that problem.
async fn view(manager: &Manager) -> Result<HostView, ProblemResponse> {
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

fn recovery_view(record: RecoveryRecord) -> RecoveryView {
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

fn policy_view(policy: HostPolicy) -> PolicyView {
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

fn read<M: Message>(json: &[u8]) -> Result<M, ProblemResponse> {
    M::from_json(json).map_err(|error| ProblemResponse::bad_request(WithCauses(&error).to_string()))
}

fn message(message: &impl Message) -> Response {
    let media_type = [(header::CONTENT_TYPE, "application/json")];
    (media_type, message.to_json()).into_response()
}
