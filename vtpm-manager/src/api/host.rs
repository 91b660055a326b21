//! The host: keys, policy, enrolment, audit log.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cert_chain::enrolment::{Certificate, Challenge, Message};
use cert_chain::pem;

use super::problem::{Body, Problem};
use super::wire::{
    ApprovalView, AuditView, DifferenceView, EnrolmentRequest, EnrolmentView, HostKeys, HostView,
    InitRequest, PolicyView, RecoverRequest, RecoveryView, StoreView,
};
use crate::anchor::{AnchorError, Approval, ApprovalStatus, HostPolicy, PolicyKeyPublic};
use crate::audit::{self, Event};
use crate::causes::WithCauses;
use crate::host::{Enrolment, HostError};
use crate::manager::{Manager, ManagerError, Standing};
use crate::rollback::RecoveryRecord;
use crate::timestamp::Timestamp;

type Managed = State<Arc<Manager>>;

/// Shows the host: its keys, and what the issuer certified.
#[utoipa::path(get, path = "/v1/host", tag = "host",
    responses((status = 200, body = HostView), (status = "default", body = Problem)))]
pub(super) async fn show(State(manager): Managed) -> Result<Json<HostView>, Problem> {
    view(&manager).await.map(Json)
}

/// Makes the host's keys in the physical TPM, bound to the operator's key. Doing it again
/// changes nothing.
#[utoipa::path(post, path = "/v1/host/init", tag = "host", request_body = InitRequest,
    responses((status = 200, body = HostView), (status = "default", body = Problem)))]
pub(super) async fn initialise(
    State(manager): Managed,
    Body(request): Body<InitRequest>,
) -> Result<Json<HostView>, Problem> {
    let policy_key = hex::decode(&request.policy_key)
        .map_err(|error| Problem::bad_request(format!("policy_key: {error}")))?;
    let policy_key = PolicyKeyPublic::from_bytes(&policy_key)
        .map_err(|error| Problem::bad_request(WithCauses(&error).to_string()))?;
    let provisioned = manager.host().public().await.is_ok();
    manager.host().initialise(&policy_key).await?;
    if !provisioned {
        let policy_key = policy_key.name();
        manager
            .record(Event::HostInitialised { policy_key })
            .await?;
    }
    manager.initialise_store().await?;
    view(&manager).await.map(Json)
}

/// Accepts the present store although the physical TPM does not vouch for it. The vRoTs that it
/// concerns get a new generation, which verifiers see. Recorded in the audit log.
#[utoipa::path(post, path = "/v1/host/recover", tag = "host", request_body = RecoverRequest,
    responses((status = 200, body = RecoveryView), (status = "default", body = Problem)))]
pub(super) async fn recover(
    State(manager): Managed,
    Body(request): Body<RecoverRequest>,
) -> Result<Json<RecoveryView>, Problem> {
    // To its end, even if the client goes away meanwhile.
    let recovery = tokio::spawn(async move { manager.recover(&request.accept).await })
        .await
        .map_err(|source| Problem::from(ManagerError::Task { source }))??;
    Ok(Json(recovery.into()))
}

/// Answers nothing about vRoTs from a store that the physical TPM does not vouch for.
pub(super) async fn store_is_open(
    State(manager): Managed,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with("/v1/vrots")
        && let Err(error) = manager.ready().await
    {
        return Problem::from(error).into_response();
    }
    next.run(request).await
}

/// Shows what the host's keys are bound to, and whether the host is in that state.
#[utoipa::path(get, path = "/v1/host/policy", tag = "host",
    responses((status = 200, body = PolicyView), (status = "default", body = Problem)))]
pub(super) async fn policy(State(manager): Managed) -> Result<Json<PolicyView>, Problem> {
    Ok(Json(manager.host().policy().await?.into()))
}

/// Takes up an operator's signed approval of PCR values (`host-policy-approval`).
#[utoipa::path(post, path = "/v1/host/policy/approvals", tag = "host", request_body = Object,
    responses((status = 200, body = PolicyView), (status = "default", body = Problem)))]
pub(super) async fn approve(
    State(manager): Managed,
    message: Bytes,
) -> Result<Json<PolicyView>, Problem> {
    let approval = Approval::from_json(&message)
        .map_err(|error| Problem::bad_request(WithCauses(&error).to_string()))?;
    let label = approval.label.clone();
    manager.host().approve(approval).await?;
    manager
        .record(Event::PolicyApproved {
            label: label.into(),
        })
        .await?;
    if let Err(error) = manager.open_store().await {
        tracing::error!(error = %WithCauses(&error), "the store stays locked");
    }
    Ok(Json(manager.host().policy().await?.into()))
}

/// First message of an enrolment (`host-enrolment-request`): take it to the issuer.
#[utoipa::path(post, path = "/v1/host/enrolment/request", tag = "host",
    request_body = EnrolmentRequest,
    responses((status = 200, body = Object), (status = "default", body = Problem)))]
pub(super) async fn request(
    State(manager): Managed,
    Body(request): Body<EnrolmentRequest>,
) -> Result<Response, Problem> {
    Ok(message(&manager.host().request(request.name).await?))
}

/// Third message of an enrolment (`host-enrolment-answer`), for the issuer's challenge
/// (`host-enrolment-challenge`).
#[utoipa::path(post, path = "/v1/host/enrolment/answer", tag = "host", request_body = Object,
    responses((status = 200, body = Object), (status = "default", body = Problem)))]
pub(super) async fn answer(State(manager): Managed, challenge: Bytes) -> Result<Response, Problem> {
    let challenge: Challenge = read(&challenge)?;
    Ok(message(&manager.host().answer(&challenge).await?))
}

/// Installs the fourth message of an enrolment (`host-enrolment-certificate`).
#[utoipa::path(post, path = "/v1/host/enrolment/certificate", tag = "host", request_body = Object,
    responses((status = 200, body = HostView), (status = "default", body = Problem)))]
pub(super) async fn install(
    State(manager): Managed,
    certificate: Bytes,
) -> Result<Json<HostView>, Problem> {
    let certificate: Certificate = read(&certificate)?;
    let enrolment = manager.host().install(&certificate).await?;
    let host = enrolment.host().clone();
    manager.record(Event::HostEnrolled { host }).await?;
    view(&manager).await.map(Json)
}

/// Checks the audit log.
#[utoipa::path(get, path = "/v1/audit", tag = "host",
    responses((status = 200, body = AuditView), (status = "default", body = Problem)))]
pub(super) async fn audit(State(manager): Managed) -> Result<Json<AuditView>, Problem> {
    let log = Arc::clone(manager.audit());
    let checked = tokio::task::spawn_blocking(move || {
        let end = log.end();
        let problem = match audit::verify(log.path()) {
            // Lines may have been added since.
            Ok(verified) if verified.entries >= end.entries => None,
            Ok(_) => Some("lines were cut off at the end".to_owned()),
            Err(error) => Some(WithCauses(&error).to_string()),
        };
        AuditView {
            log: log.path().to_owned(),
            entries: end.entries,
            head: end.head,
            intact: problem.is_none(),
            problem,
        }
    });
    checked.await.map(Json).map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            error.to_string(),
        )
    })
}

async fn view(manager: &Manager) -> Result<HostView, Problem> {
    let keys = match manager.host().public().await {
        Ok(public) => Some(HostKeys {
            ek: public.ek_public.name(),
            ik: public.ik_public.name(),
            srk: public.srk_name,
            policy_key: public.policy_key.name(),
        }),
        Err(HostError::Anchor(AnchorError::NotProvisioned)) => None,
        Err(error) => return Err(error.into()),
    };
    let config = manager.config();
    Ok(HostView {
        tpm: config.anchor.tpm.to_string(),
        state_dir: config.state_dir.clone(),
        backend_digest: manager.backend_digest().await.ok(),
        isolation: manager.isolation().name().to_owned(),
        manager_digest: manager.program_digest(),
        keys,
        enrolment: manager.host().enrolment().as_deref().map(Into::into),
        store: store_view(manager).await?,
    })
}

async fn store_view(manager: &Manager) -> Result<StoreView, Problem> {
    let status = (manager.journal().rollback_status().await).map_err(ManagerError::from)?;
    let standing = manager.standing();
    let (state, problem) = match &standing {
        Standing::Blank => ("blank", None),
        Standing::Held { reason } => ("locked", Some(reason.clone())),
        Standing::Open { .. } => ("open", None),
        Standing::Refused { refusal } => {
            let text = format!("{refusal}. {}", refusal.last_resort());
            ("refused", Some(text))
        }
    };
    Ok(StoreView {
        state: state.to_owned(),
        refusal: match standing {
            Standing::Refused { refusal } => Some(refusal.code().to_owned()),
            _ => None,
        },
        problem,
        batch: status.map(|status| status.epoch.number()),
        uncovered_batches: status.map(|status| status.window.batches),
        window_s: status.map(|status| status.window.limit.as_secs()),
    })
}

impl From<RecoveryRecord> for RecoveryView {
    fn from(record: RecoveryRecord) -> Self {
        Self {
            accepted: record.accepted.to_owned(),
            finding: record.finding,
            batch: record.batch,
            generation: record.generation,
            raised: record.raised,
            discarded: record.discarded,
            lost: record.lost,
        }
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

impl From<HostPolicy> for PolicyView {
    fn from(policy: HostPolicy) -> Self {
        Self {
            policy_key: policy.policy_key.name(),
            policy_digest: policy.policy_digest,
            objects: vec![
                "host IK (quotes, certificates)".to_owned(),
                "root secret (keys of all vRoTs)".to_owned(),
            ],
            satisfied: policy.is_satisfied(),
            approvals: policy.approvals.into_iter().map(Into::into).collect(),
            pcrs: policy.current,
        }
    }
}

impl From<ApprovalStatus> for ApprovalView {
    fn from(status: ApprovalStatus) -> Self {
        Self {
            label: status.label,
            differences: status
                .differences
                .into_iter()
                .map(|difference| DifferenceView {
                    pcr: difference.pcr,
                    found: difference.found,
                    approved: difference.approved,
                })
                .collect(),
        }
    }
}

fn read<M: Message>(json: &[u8]) -> Result<M, Problem> {
    M::from_json(json).map_err(|error| Problem::bad_request(WithCauses(&error).to_string()))
}

fn message(message: &impl Message) -> Response {
    let media_type = [(header::CONTENT_TYPE, "application/json")];
    (media_type, message.to_json()).into_response()
}
