//! What the API answers while the manager starts: how it stands with the host as far as that is
//! known, and "opening" to everything else.

use std::sync::Arc;

use api_types::wire::{EventLogView, HostView};
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Json, Router, middleware};

use super::caller::{self, AccessControl};
use super::host_view::{fault_view, log_view, store_view};
use super::problem::{self, ProblemResponse};
use super::{description, metrics, paths};
use crate::manager::{ManagerError, Startup, Status};

const NOT_ASKED: &str = "the manager has just started and has not reached the physical TPM yet";
const NOT_READ: &str = "the manager has just started and has not read it yet";

/// What is known of a manager that starts: it does not change until there is one.
struct Known {
    host: HostView,
    status: Status,
}

/// What answers a request before there is a manager, once it is known who calls.
pub(super) fn router(startup: &Startup) -> Router {
    let own = [
        ("/v1/host", get(show)),
        ("/metrics", get(measure)),
        ("/v1/openapi.json", get(description::serve)),
    ];
    let is_other = |path: &&str| own.iter().all(|(known, _)| known != path);
    let others: Vec<&str> = paths().into_iter().filter(is_other).collect();
    let router = (others.into_iter()).fold(Router::new(), |router, path| {
        router.route(path, any(opening))
    });
    own.into_iter()
        .fold(router, |router, (path, method)| router.route(path, method))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(
            AccessControl::of_starting(startup),
            caller::check,
        ))
        .with_state(Arc::new(Known {
            host: view(startup),
            status: startup.status(),
        }))
}

async fn opening() -> ProblemResponse {
    ManagerError::StoreOpening.into()
}

async fn measure(State(known): State<Arc<Known>>) -> impl IntoResponse {
    metrics::answer(&known.status)
}

async fn show(State(known): State<Arc<Known>>) -> Json<HostView> {
    Json(HostView {
        log: log_view(),
        ..known.host.clone()
    })
}

fn view(startup: &Startup) -> HostView {
    let config = startup.config();
    HostView {
        tpm: config.anchor.tpm.to_string(),
        tpm_problem: Some(NOT_ASKED.to_owned()),
        event_log: EventLogView {
            path: config.event_log.clone(),
            problem: None,
            unchecked: Some(NOT_READ.to_owned()),
            unaccounted_pcrs: Vec::new(),
        },
        state_dir: config.state_dir.clone(),
        backend_digest: None,
        isolation: startup.isolation().name().to_owned(),
        manager_digest: startup.program_digest(),
        keys: None,
        enrolment: None,
        store: store_view(&startup.status().store),
        audit_problem: None,
        log: log_view(),
        last_fault: startup.last_fault().map(fault_view),
    }
}
