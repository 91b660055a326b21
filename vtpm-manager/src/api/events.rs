//! What happens to vRoTs, as a stream.

use std::convert::Infallible;

use api_types::wire::{EventLine, NDJSON};
use api_types::{PROBLEM_JSON, Problem};
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;
use vrot_events::{Follower, Scope};

use super::problem::{ProblemResponse, Query};
use super::vrots::Managed;

/// Where to begin.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Beginning {
    /// Number of the last event that is known already; 0 for all that are kept. Without it, only what
    /// happens from now on is told.
    after: Option<u64>,
    /// Which start of the manager that number is of, by the stream's first line. After another one, all
    /// that is kept is told.
    manager: Option<Uuid>,
}

/// Follows what happens to vRoTs: one JSON object a line, as it happens, and empty lines in between.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Beginning),
    responses((status = 200, body = EventLine, content_type = NDJSON),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn follow(
    State(manager): Managed,
    Query(from): Query<Beginning>,
) -> Result<Response, ProblemResponse> {
    let follower = manager
        .events()
        .follow(Scope::Host, from.after, from.manager);
    let headers = [(CONTENT_TYPE, NDJSON), (CACHE_CONTROL, "no-store")];
    Ok((headers, body(follower)).into_response())
}

/// What a follower is told, for as long as its connection takes it.
fn body(follower: Follower) -> Body {
    Body::from_stream(stream::unfold(follower, |mut follower| async {
        let lines: Result<Bytes, Infallible> = Ok(follower.next().await?);
        Some((lines, follower))
    }))
}
