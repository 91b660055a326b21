//! Errors as problem details (RFC 9457).

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::anchor::{AnchorError, HardwareError};
use crate::backend::BackendError;
use crate::causes::WithCauses;
use crate::host::HostError;
use crate::manager::ManagerError;
use crate::rollback::GuardError;
use crate::store::StoreError;

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:vrot:problem:` and a code that stays the same.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do about it.
    pub detail: String,
}

/// Rides along with a response, for the audit log.
#[derive(Clone, Debug)]
pub(super) struct Reason(pub(super) String);

/// Media type of problem details (RFC 9457 §6.1).
pub(super) const PROBLEM_JSON: &str = "application/problem+json";
const PREFIX: &str = "urn:vrot:problem:";

impl Problem {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{PREFIX}{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// The code without its prefix.
    pub fn code(&self) -> &str {
        self.kind.strip_prefix(PREFIX).unwrap_or(&self.kind)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reason = Reason(self.detail.clone());
        let mut response = (status, Json(self)).into_response();
        // `Json` says application/json.
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static(PROBLEM_JSON),
        );
        response.extensions_mut().insert(reason);
        response
    }
}

impl From<ManagerError> for Problem {
    fn from(error: ManagerError) -> Self {
        let (status, code) = classify(&error);
        if status.is_server_error() {
            tracing::error!(error = %WithCauses(&error), "a request failed");
        }
        Self::new(status, code, WithCauses(&error).to_string())
    }
}

impl From<HostError> for Problem {
    fn from(error: HostError) -> Self {
        ManagerError::from(error).into()
    }
}

fn classify(error: &ManagerError) -> (StatusCode, &'static str) {
    match error {
        ManagerError::Anchor(error) | ManagerError::Host(HostError::Anchor(error)) => {
            classify_anchor(error)
        }
        ManagerError::Host(
            HostError::CertificateOfAnother { .. } | HostError::CertificateProfile(_),
        ) => (StatusCode::UNPROCESSABLE_ENTITY, "certificate-refused"),
        ManagerError::Host(HostError::Expired { .. }) => (StatusCode::CONFLICT, "host-expired"),
        ManagerError::Host(HostError::NotEnrolled) => (StatusCode::CONFLICT, "host-not-enrolled"),
        ManagerError::Lifecycle(_) | ManagerError::NothingToSuspend { .. } => {
            (StatusCode::CONFLICT, "wrong-state")
        }
        ManagerError::UnknownVrot { .. } => (StatusCode::NOT_FOUND, "unknown-vrot"),
        ManagerError::DeletionUnfinished { .. } => (StatusCode::CONFLICT, "deletion-unfinished"),
        ManagerError::VmTaken { .. } => (StatusCode::CONFLICT, "vm-taken"),
        ManagerError::BeingTakenOver { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "being-taken-over")
        }
        ManagerError::Backend(BackendError::Instance { .. }) => {
            (StatusCode::CONFLICT, "live-elsewhere")
        }
        ManagerError::Backend(BackendError::NotDurable { .. }) => {
            (StatusCode::SERVICE_UNAVAILABLE, "not-durable")
        }
        ManagerError::Backend(_) => (StatusCode::INTERNAL_SERVER_ERROR, "backend-failed"),
        ManagerError::Key(_) => (StatusCode::INTERNAL_SERVER_ERROR, "key-refused"),
        ManagerError::Rollback(
            GuardError::NotAccepted { .. } | GuardError::NotRefused | GuardError::NotBlank,
        ) => (StatusCode::CONFLICT, "not-recovered"),
        ManagerError::StoreStalled { .. } => (StatusCode::SERVICE_UNAVAILABLE, "store-stalled"),
        ManagerError::Unfinished { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unfinished"),
        ManagerError::StoreRefused { .. } => (StatusCode::CONFLICT, "store-refused"),
        ManagerError::Store(StoreError::Locked) => (StatusCode::CONFLICT, "store-locked"),
        ManagerError::Store(_) | ManagerError::StateMissing { .. } => {
            (StatusCode::INTERNAL_SERVER_ERROR, "store-failed")
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
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
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "tpm-failed"),
    }
}

/// A JSON body, refused with a problem.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Json::from_request(request, state)
            .await
            .map(|Json(body)| Self(body))
            .map_err(|rejection: JsonRejection| {
                Problem::new(rejection.status(), "bad-request", rejection.body_text())
            })
    }
}

/// A part of the path, refused with a problem.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        extract::Path::from_request_parts(parts, state)
            .await
            .map(|extract::Path(part)| Self(part))
            .map_err(|rejection: PathRejection| Problem::bad_request(rejection.body_text()))
    }
}

/// The query, refused with a problem.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        extract::Query::from_request_parts(parts, state)
            .await
            .map(|extract::Query(query)| Self(query))
            .map_err(|rejection: QueryRejection| Problem::bad_request(rejection.body_text()))
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        format!(
            "there is no {}: GET /v1/openapi.json describes what there is",
            uri.path()
        ),
    )
}

pub(super) async fn no_such_method(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "unknown-method",
        format!("{} does not take this method", uri.path()),
    )
}
