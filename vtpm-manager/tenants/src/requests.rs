//! The requests, each within the tenant that the connection's certificate names.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api_types::wire::{EventLine, NDJSON, TenantEvidenceRequest, TenantVmDetails, TenantVmList};
use api_types::{PROBLEM_JSON, Problem};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use cert_chain::{Tenant, VmId};
use futures_util::stream;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;
use uuid::Uuid;
use vrot_events::Scope;

use crate::answer::AnswerDeadline;
use crate::counts::{CountedRequests, Counts, Refusal};
use crate::description;
use crate::host::TenantHost;
use crate::problem::{self, Refused};
use crate::quotas::Quotas;

/// What answers requests.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) host: Arc<dyn TenantHost>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) counts: Arc<Counts>,
}

/// Whose connection it is.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) tenant: Tenant,
    /// When the answer under way there must have been taken.
    pub(crate) deadline: AnswerDeadline,
}

/// The numbers of 4,096 VMs.
const MAX_BODY: usize = 256 * 1024;
/// For a body as a whole.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// For the whole of an evidence set, which may have some ten megabytes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Media type of an evidence set.
const CBOR: &str = "application/cbor";

/// Every route with its methods: what [`crate::description()`] must describe.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<Api>)> {
    vec![
        ("/v1/vms", get(list)),
        ("/v1/vms/{vm}", get(show)),
        ("/v1/evidence", post(evidence)),
        ("/v1/events", get(follow)),
        ("/v1/openapi.json", get(description::serve)),
    ]
}

/// What answers a request of a tenant that is known.
pub(crate) fn router(api: Api) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods)
        })
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(api.clone(), within_quota))
        .with_state(api)
}

/// Before anything else, and of every kind of request.
async fn within_quota(
    State(api): State<Api>,
    Extension(Asking { tenant, .. }): Extension<Asking>,
    request: Request,
    next: Next,
) -> Response {
    if !api.quotas.admit(&tenant, Instant::now()) {
        api.counts.refuse(Refusal::Quota);
        return Refused::too_many("something").into_response();
    }
    next.run(request).await
}

/// Lists your VMs on this host.
#[utoipa::path(get, path = "/v1/vms", tag = "vms",
    responses((status = 200, body = TenantVmList),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(crate) async fn list(
    State(api): State<Api>,
    Extension(Asking { tenant, .. }): Extension<Asking>,
) -> Result<Json<TenantVmList>, Refused> {
    api.counts.request(CountedRequests::List);
    api.ready()?;
    Ok(Json(TenantVmList {
        host: api.host.name(),
        vms: api.host.vms(&tenant),
    }))
}

/// Shows one of your VMs, with the chain of its identity.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms", params(Vm),
    responses((status = 200, body = TenantVmDetails),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(crate) async fn show(
    State(api): State<Api>,
    Extension(Asking { tenant, .. }): Extension<Asking>,
    Path(vm): Path<String>,
) -> Result<Json<TenantVmDetails>, Refused> {
    api.counts.request(CountedRequests::Show);
    api.ready()?;
    // What is no number is the number of no VM.
    let vm: VmId = vm.parse().map_err(|_| Refused::unknown_vm())?;
    let found = api.host.vm(&tenant, vm);
    found.map(Json).ok_or_else(Refused::unknown_vm)
}

/// Has your VMs quoted with your nonce, without their help: an evidence set.
#[utoipa::path(post, path = "/v1/evidence", tag = "evidence", request_body = TenantEvidenceRequest,
    responses((status = 200, body = Vec<u8>, content_type = CBOR),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(crate) async fn evidence(
    State(api): State<Api>,
    Extension(Asking { tenant, deadline }): Extension<Asking>,
    request: Request,
) -> Result<Response, Refused> {
    api.counts.request(CountedRequests::Evidence);
    let Some(turn) = api.quotas.admit_evidence(&tenant, Instant::now()) else {
        api.counts.refuse(Refusal::Quota);
        return Err(Refused::too_many("evidence"));
    };
    let body = whole_body(request.into_body()).await?;
    let asked = serde_json::from_slice(&body)
        .map_err(|error| Refused::bad_request(format!("the body is not as described: {error}")))?;
    api.ready()?;
    let Ok(turn) = turn.acquire_owned().await else {
        return Err(Refused::opening());
    };
    let set = api.host.evidence(&tenant, asked).await?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(CBOR)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (CONTENT_LENGTH, HeaderValue::from(set.len())),
    ];
    // The next one begins when this one is taken.
    let body = deadline.body(set.into(), turn, ANSWER_DEADLINE);
    Ok((headers, body).into_response())
}

/// Follows what happens to your VMs: one JSON object a line, as it happens, and empty lines in between.
/// Events are numbered for you alone.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Beginning),
    responses((status = 200, body = EventLine, content_type = NDJSON),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(crate) async fn follow(
    State(api): State<Api>,
    Extension(Asking { tenant, .. }): Extension<Asking>,
    from: Result<Query<Beginning>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    api.counts.request(CountedRequests::Events);
    let Query(from) = from.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let events = api.host.events();
    let follower = events.follow(Scope::Tenant(tenant), from.after, from.manager);
    let body = Body::from_stream(stream::unfold(follower, |mut follower| async {
        let lines: Result<Bytes, Infallible> = Ok(follower.next().await?);
        Some((lines, follower))
    }));
    let headers = [(CONTENT_TYPE, NDJSON), (CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

/// Which VM.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes the path to clients")]
pub(crate) struct Vm {
    /// Its number.
    #[param(format = Uuid)]
    vm: String,
}

/// Where to begin.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Beginning {
    /// Number of the last event that is known already; 0 for all that are kept. Without it, only what
    /// happens from now on is told.
    after: Option<u64>,
    /// Which start of the manager that number is of, by the stream's first line. After another one, all
    /// that is kept is told.
    manager: Option<Uuid>,
}

impl Api {
    fn ready(&self) -> Result<(), Refused> {
        self.host
            .is_ready()
            .then_some(())
            .ok_or_else(Refused::opening)
    }
}

async fn whole_body(body: Body) -> Result<Bytes, Refused> {
    match timeout(BODY_DEADLINE, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
            format!("the body cannot be taken: at most {MAX_BODY} bytes are"),
        )),
        Err(_) => Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            format!(
                "the body was not there within {} s",
                BODY_DEADLINE.as_secs()
            ),
        )),
    }
}
