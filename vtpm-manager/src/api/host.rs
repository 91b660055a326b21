//! The host: keys, policy, enrolment, audit log.

use std::sync::Arc;

use api_types::wire::{
    AuditAcceptance, AuditView, EnrolmentRequest, HostView, InitRequest, PolicyView,
    RecoverRequest, RecoveryView,
};
use api_types::{PROBLEM_JSON, Problem, WithCauses};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cert_chain::enrolment::{Certificate, Challenge, Message};
use cert_chain::operator::{Approval, PolicyKeyPublic};

use super::host_view::{policy_view, recovery_view, view};
use super::messages::{
    HostEnrolmentAnswer, HostEnrolmentCertificate, HostEnrolmentChallenge, HostEnrolmentRequest,
};
use super::order::run_to_completion;
use super::problem::{Body, ProblemResponse};
use crate::audit::Event;
use crate::manager::{Manager, ManagerError};

type Managed = State<Arc<Manager>>;

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
    let unvouched = manager.guarded().unvouched_lines();
    let is_open = manager.guarded().is_open();
    let checked = tokio::task::spawn_blocking(move || {
        let end = log.end();
        let altered = (log.check(end.head).err()).map(|error| WithCauses(&error).to_string());
        let problem = altered.or_else(|| log.what_is_missing());
        AuditView {
            log: log.path().to_owned(),
            begins_after: log.from(),
            entries: end.entries,
            parts: end.parts,
            bytes: end.bytes,
            head: end.head,
            vouched_lines: is_open.then(|| end.entries.saturating_sub(unvouched)),
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

/// Accepts that the audit log lacks lines that the physical TPM vouched for. Recorded in it.
#[utoipa::path(post, path = "/v1/audit/accept", tag = "host", request_body = AuditAcceptance,
    responses((status = 200, body = AuditView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn accept_audit(
    State(manager): Managed,
    Body(request): Body<AuditAcceptance>,
) -> Result<Json<AuditView>, ProblemResponse> {
    let accepted: Result<(), ManagerError> =
        run_to_completion(&manager, move |manager| async move {
            manager.guarded().accept_log(request.head).await
        })
        .await;
    accepted?;
    audit(State(manager)).await
}

fn read<M: Message>(json: &[u8]) -> Result<M, ProblemResponse> {
    M::from_json(json).map_err(|error| ProblemResponse::bad_request(WithCauses(&error).to_string()))
}

fn message(message: &impl Message) -> Response {
    let media_type = [(header::CONTENT_TYPE, "application/json")];
    (media_type, message.to_json()).into_response()
}
