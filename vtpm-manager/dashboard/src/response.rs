//! Answers, and what each of them tells the browser not to do.

use api_types::{PROBLEM_JSON, Problem};
use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::access::Refusal;
use crate::assets::Asset;
use crate::stream::Stream;

/// A body that is there, or one that goes on.
pub(crate) type Answer = Response<Either<Full<Bytes>, Stream>>;

/// Nothing is loaded, run, or sent to but from this origin; nothing inline is run; no text becomes
/// markup (Content Security Policy Level 3, Trusted Types); no page frames this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const EVERY_ANSWER: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// A file of the page.
pub(crate) fn asset(asset: &Asset) -> Answer {
    with_body(StatusCode::OK, asset.media_type, asset.text)
}

/// Lines of JSON, as they come.
pub(crate) fn stream(stream: Stream) -> Answer {
    answer(
        StatusCode::OK,
        "application/x-ndjson",
        Either::Right(stream),
    )
}

/// A JSON value.
pub(crate) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(json) => with_body(StatusCode::OK, "application/json", json),
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            &error.to_string(),
        ),
    }
}

/// A request that is not served.
pub(crate) fn refused(refusal: Refusal) -> Answer {
    let code = match refusal {
        Refusal::Host => "host",
        Refusal::Origin => "origin",
        Refusal::Token => "token",
    };
    problem(refusal.status(), code, &refusal.to_string())
}

/// An error, as problem details (RFC 9457).
pub(crate) fn problem(status: StatusCode, code: &str, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or_default();
    let problem = Problem::new(status.as_u16(), title, code, detail);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    with_body(status, PROBLEM_JSON, body)
}

fn with_body(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    answer(status, media_type, Either::Left(Full::new(body.into())))
}

fn answer(
    status: StatusCode,
    media_type: &'static str,
    body: Either<Full<Bytes>, Stream>,
) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    forbid(headers);
    answer
}

fn forbid(headers: &mut HeaderMap) {
    for (name, value) in EVERY_ANSWER {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
