//! Errors as problem details (RFC 9457).

use api_types::WithCauses;
use api_types::{OPENING, PROBLEM_JSON, Problem};
use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract};
use guarded_state::disk::StoreError;
use guarded_state::journal::GuardError;
use serde::de::DeserializeOwned;
use trust_anchor::{AnchorError, HardwareError};

use crate::audit::AuditError;
use crate::backend::BackendError;
use crate::evidence::HostEvidenceError;
use crate::host::HostError;
use crate::manager::ManagerError;
use launch_measurement::{FileError, MeasureError};

/// A problem as the answer to a request.
#[derive(Clone, Debug)]
pub(super) struct ProblemResponse(pub(super) Problem);

const INTERNAL: (StatusCode, &str) = (StatusCode::INTERNAL_SERVER_ERROR, "internal");

/// Rides along with a response, for the audit log.
#[derive(Clone, Debug)]
pub(super) struct Reason {
    code: String,
    /// What is wrong and what to do about it.
    pub(super) detail: String,
}

/// When a request that came at a bad moment is to be sent again, in seconds.
const RETRY_AFTER: u64 = 1;

impl Reason {
    /// Whether the manager was just started, and nothing was refused.
    pub(super) fn is_opening(&self) -> bool {
        self.code == OPENING
    }
}

impl ProblemResponse {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self(Problem::new(status.as_u16(), title, code, detail))
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }
}

impl IntoResponse for ProblemResponse {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reason = Reason {
            code: problem.code().to_owned(),
            detail: problem.detail.clone(),
        };
        let mut response = (status, Json(problem)).into_response();
        // `Json` says application/json.
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(PROBLEM_JSON),
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let retry_after = header::HeaderValue::from(RETRY_AFTER);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, retry_after);
        }
        response.extensions_mut().insert(reason);
        response
    }
}

impl From<ManagerError> for ProblemResponse {
    fn from(error: ManagerError) -> Self {
        let (status, code) = classify(&error);
        if status.is_server_error() && code != OPENING {
            tracing::error!(error = %WithCauses(&error), "a request failed");
        }
        Self::new(status, code, WithCauses(&error).to_string())
    }
}

impl From<HostError> for ProblemResponse {
    fn from(error: HostError) -> Self {
        ManagerError::from(error).into()
    }
}

// What becomes of each error is said for each: a new one does not compile without a decision.

fn classify(error: &ManagerError) -> (StatusCode, &'static str) {
    match error {
        ManagerError::Anchor(error) => classify_anchor(error),
        ManagerError::Backend(error) => classify_backend(error),
        ManagerError::Host(error) => classify_host(error),
        ManagerError::Rollback(error) => classify_rollback(error),
        ManagerError::Store(error) => classify_store(error),
        ManagerError::Audit(AuditError::NotMissing { .. }) => {
            (StatusCode::CONFLICT, "nothing-missing")
        }
        ManagerError::BeingMade { .. } => (StatusCode::CONFLICT, "being-made"),
        ManagerError::BeingTakenOver { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "being-taken-over")
        }
        ManagerError::LaunchUnderWay { .. } => (StatusCode::CONFLICT, "launch-under-way"),
        ManagerError::LaunchNotMeasured { .. }
        | ManagerError::LaunchNotAnnounced { .. }
        | ManagerError::LaunchNotMeasuredForNew => (StatusCode::CONFLICT, "launch-not-measured"),
        ManagerError::Measure(error) => classify_measurement(error),
        ManagerError::NoEvidence(HostEvidenceError::Busy) => {
            (StatusCode::SERVICE_UNAVAILABLE, "evidence-busy")
        }
        ManagerError::NoEvidence(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-evidence"),
        ManagerError::NotQuoted { .. } => (StatusCode::CONFLICT, "not-quoted"),
        ManagerError::NoVms => (StatusCode::NOT_FOUND, "no-vms"),
        ManagerError::TooManyVms { .. } => (StatusCode::BAD_REQUEST, "too-many-vms"),
        ManagerError::DeletionUnfinished { .. } => (StatusCode::CONFLICT, "deletion-unfinished"),
        ManagerError::Key(_) => (StatusCode::INTERNAL_SERVER_ERROR, "key-refused"),
        ManagerError::Lifecycle(_)
        | ManagerError::NothingToSuspend { .. }
        | ManagerError::NotReset { .. } => (StatusCode::CONFLICT, "wrong-state"),
        ManagerError::ResetByVmm { .. } => (StatusCode::CONFLICT, "reset-by-vmm"),
        ManagerError::NoFolder { .. } => (StatusCode::CONFLICT, "no-folder"),
        ManagerError::LaunchersFolder(_) => (StatusCode::CONFLICT, "folder-refused"),
        ManagerError::NotTakenOver { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "not-taken-over"),
        ManagerError::StateMissing { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "store-failed"),
        ManagerError::StoreOpening => (StatusCode::SERVICE_UNAVAILABLE, OPENING),
        ManagerError::StoreRefused { .. } => (StatusCode::CONFLICT, "store-refused"),
        ManagerError::StoreStalled { .. } => (StatusCode::SERVICE_UNAVAILABLE, "store-stalled"),
        ManagerError::Unfinished { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unfinished"),
        ManagerError::TpmTaken { .. } => (StatusCode::CONFLICT, "tpm-taken"),
        ManagerError::UnknownVrot { .. } => (StatusCode::NOT_FOUND, "unknown-vrot"),
        ManagerError::VmTaken { .. } => (StatusCode::CONFLICT, "vm-taken"),
        ManagerError::AnotherManager { .. }
        | ManagerError::Audit(_)
        | ManagerError::Claim { .. }
        | ManagerError::Folder { .. }
        | ManagerError::Manufacture(_)
        | ManagerError::NoState
        | ManagerError::Program { .. }
        | ManagerError::Record(_)
        | ManagerError::State(_)
        | ManagerError::Task { .. }
        | ManagerError::Thread { .. } => INTERNAL,
    }
}

fn classify_measurement(error: &MeasureError) -> (StatusCode, &'static str) {
    match error {
        MeasureError::Launch(_)
        | MeasureError::NoDescriptor { .. }
        | MeasureError::Number { .. }
        | MeasureError::Part(_)
        | MeasureError::Source { .. }
        | MeasureError::UnknownPart { .. } => (StatusCode::BAD_REQUEST, "bad-request"),
        MeasureError::File { source, .. } => match source {
            FileError::Changed | FileError::GivenUp => (StatusCode::CONFLICT, "file-changed"),
            FileError::NotRegular | FileError::TooLarge { .. } | FileError::Read(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "file-not-measured")
            }
        },
        MeasureError::Fault | MeasureError::Stopped | MeasureError::Thread(_) => INTERNAL,
    }
}

fn classify_host(error: &HostError) -> (StatusCode, &'static str) {
    match error {
        HostError::Anchor(error) => classify_anchor(error),
        HostError::CertificateOfAnother { .. } | HostError::CertificateProfile(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "certificate-refused")
        }
        HostError::Expired { .. } => (StatusCode::CONFLICT, "host-expired"),
        HostError::NotEnrolled => (StatusCode::CONFLICT, "host-not-enrolled"),
        HostError::File { .. } | HostError::Key(_) | HostError::Message { .. } => INTERNAL,
    }
}

fn classify_backend(error: &BackendError) -> (StatusCode, &'static str) {
    match error {
        BackendError::Instance { .. } => (StatusCode::CONFLICT, "live-elsewhere"),
        BackendError::NotDurable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not-durable"),
        BackendError::Deadline { .. }
        | BackendError::Ended { .. }
        | BackendError::Folder { .. }
        | BackendError::Frame { .. }
        | BackendError::NoUserLeft { .. }
        | BackendError::Process { .. }
        | BackendError::Root { .. }
        | BackendError::Spawn { .. }
        | BackendError::Stranger { .. }
        | BackendError::Version { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "backend-failed"),
    }
}

fn classify_rollback(error: &GuardError) -> (StatusCode, &'static str) {
    match error {
        GuardError::NotAccepted { .. } | GuardError::NotBlank | GuardError::NotRefused => {
            (StatusCode::CONFLICT, "not-recovered")
        }
        GuardError::Generation(_)
        | GuardError::NotRaised { .. }
        | GuardError::Register(_)
        | GuardError::Store(_) => INTERNAL,
    }
}

fn classify_store(error: &StoreError) -> (StatusCode, &'static str) {
    match error {
        StoreError::Locked => (StatusCode::CONFLICT, "store-locked"),
        StoreError::Altered(_)
        | StoreError::Closed
        | StoreError::Foreign { .. }
        | StoreError::Full(_)
        | StoreError::Open { .. }
        | StoreError::Overtaken
        | StoreError::Read(_)
        | StoreError::ReadOnly(_)
        | StoreError::TooLarge { .. }
        | StoreError::Unanchored
        | StoreError::Unconfirmed
        | StoreError::UnknownVrot { .. }
        | StoreError::Write(_) => (StatusCode::INTERNAL_SERVER_ERROR, "store-failed"),
    }
}

fn classify_anchor(error: &AnchorError) -> (StatusCode, &'static str) {
    match error {
        AnchorError::ApprovalBank { .. }
        | AnchorError::ApprovalSelection { .. }
        | AnchorError::ApprovalSignature { .. }
        | AnchorError::ApprovalUnextended { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "approval-refused")
        }
        AnchorError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "tpm-busy"),
        AnchorError::Silent { .. } | AnchorError::TooLate => {
            (StatusCode::SERVICE_UNAVAILABLE, "tpm-silent")
        }
        AnchorError::Hardware(HardwareError::NoEkCertificate) => {
            (StatusCode::CONFLICT, "no-ek-certificate")
        }
        AnchorError::NotProvisioned | AnchorError::RootSecretMissing => {
            (StatusCode::CONFLICT, "host-not-initialised")
        }
        AnchorError::RootSecretForeign { .. } => (StatusCode::CONFLICT, "root-secret-foreign"),
        AnchorError::NoApproval { .. }
        | AnchorError::PcrsNotApproved { .. }
        | AnchorError::PcrsUnsteady { .. } => (StatusCode::CONFLICT, "pcrs-not-approved"),
        AnchorError::PolicyKeyMismatch { .. } => (StatusCode::CONFLICT, "another-policy-key"),
        AnchorError::TpmReplaced { .. } => (StatusCode::CONFLICT, "tpm-replaced"),
        AnchorError::Hardware(
            HardwareError::Altered { .. }
            | HardwareError::Bridge { .. }
            | HardwareError::NoPcr { .. }
            | HardwareError::NoUnixSockets
            | HardwareError::Occupied { .. }
            | HardwareError::PcrsChange
            | HardwareError::Response { .. }
            | HardwareError::Stack { .. }
            | HardwareError::TooLong { .. }
            | HardwareError::Tpm { .. },
        )
        | AnchorError::BankUnextended { .. }
        | AnchorError::NoBank { .. }
        | AnchorError::Record { .. }
        | AnchorError::StorageRootKey { .. }
        | AnchorError::Stopped => (StatusCode::INTERNAL_SERVER_ERROR, "tpm-failed"),
    }
}

/// A JSON body, refused with a problem.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, ProblemResponse> {
        Json::from_request(request, state)
            .await
            .map(|Json(body)| Self(body))
            .map_err(|rejection: JsonRejection| {
                ProblemResponse::new(rejection.status(), "bad-request", rejection.body_text())
            })
    }
}

/// A JSON body that may be left out, or be `null`.
pub(super) struct OptionalBody<T>(pub(super) Option<T>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OptionalBody<T> {
    type Rejection = ProblemResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, ProblemResponse> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| {
            ProblemResponse::new(rejection.status(), "bad-request", rejection.body_text())
        })?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        let body = serde_json::from_slice(&bytes);
        body.map(Self).map_err(|error| {
            ProblemResponse::bad_request(format!("the body is not as described: {error}"))
        })
    }
}

/// A part of the path, refused with a problem.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ProblemResponse> {
        extract::Path::from_request_parts(parts, state)
            .await
            .map(|extract::Path(part)| Self(part))
            .map_err(|rejection: PathRejection| ProblemResponse::bad_request(rejection.body_text()))
    }
}

/// The query, refused with a problem.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ProblemResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ProblemResponse> {
        extract::Query::from_request_parts(parts, state)
            .await
            .map(|extract::Query(query)| Self(query))
            .map_err(|rejection: QueryRejection| {
                ProblemResponse::bad_request(rejection.body_text())
            })
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ProblemResponse {
    ProblemResponse::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        format!(
            "there is no {}: GET /v1/openapi.json describes what there is",
            uri.path()
        ),
    )
}

pub(super) async fn no_such_method(uri: Uri) -> ProblemResponse {
    ProblemResponse::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "unknown-method",
        format!("{} does not take this method", uri.path()),
    )
}
