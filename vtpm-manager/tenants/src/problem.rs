//! What is refused, as problem details (RFC 9457). No text tells of anything but the request.

use api_types::{OPENING, PROBLEM_JSON, Problem};
use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::host::EvidenceRefusal;

/// A refusal, to be answered.
#[derive(Debug)]
pub(crate) struct Refused {
    problem: Problem,
    /// After how many seconds it may be tried again.
    retry_after: Option<u64>,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or_default();
        Self {
            problem: Problem::new(status.as_u16(), title, code, detail),
            retry_after: None,
        }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// Of a VM that does not exist, and of one that is somebody else's: nobody can tell which.
    pub(crate) fn unknown_vm() -> Self {
        let detail = "none of your VMs on this host has this number";
        Self::new(StatusCode::NOT_FOUND, "unknown-vm", detail)
    }

    pub(crate) fn opening() -> Self {
        let detail = "the manager cannot answer about VMs at present: try again in a moment";
        let refused = Self::new(StatusCode::SERVICE_UNAVAILABLE, OPENING, detail);
        refused.again_after(1)
    }

    pub(crate) fn too_many(what: &str) -> Self {
        let detail = format!("you have asked for {what} more often than you may: try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "quota", detail).again_after(1)
    }

    fn again_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<EvidenceRefusal> for Refused {
    fn from(refusal: EvidenceRefusal) -> Self {
        match refusal {
            EvidenceRefusal::UnknownVm => Self::unknown_vm(),
            EvidenceRefusal::NoVms => {
                let detail = EvidenceRefusal::NoVms.to_string();
                Self::new(StatusCode::NOT_FOUND, "no-vms", detail)
            }
            EvidenceRefusal::BadRequest(detail) => Self::bad_request(detail),
            EvidenceRefusal::Unavailable => {
                let detail = EvidenceRefusal::Unavailable.to_string();
                let refused = Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-evidence", detail);
                refused.again_after(1)
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(crate) async fn no_such_path() -> Refused {
    let detail = "there is no such path: GET /v1/openapi.json describes what there is";
    Refused::new(StatusCode::NOT_FOUND, "unknown-path", detail)
}

pub(crate) async fn no_such_method() -> Refused {
    let detail =
        "this path does not take this method: GET /v1/openapi.json describes what there is";
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "unknown-method", detail)
}
