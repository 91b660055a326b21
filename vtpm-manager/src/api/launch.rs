//! What a VM is launched with.

use std::sync::Arc;

use api_types::wire::{LaunchPartView, LaunchRequest, LaunchState, LaunchView};
use api_types::{PROBLEM_JSON, Problem};
use attestation::launch::Launch;
use axum::Json;
use axum::extract::{Extension, State};

use super::order::transition;
use super::problem::{Body, Path, ProblemResponse};
use super::vrots::{Id, Managed, Vm, key, vm};
use crate::manager::{Manager, ManagerError, Vrot};
use launch_measurement::{Files, parts_to_measure};

/// Shows what was measured of a VM.
#[utoipa::path(get, path = "/v1/vrots/{id}/launch", tag = "vrots", params(Id),
    responses((status = 200, body = LaunchView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn show(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<LaunchView>, ProblemResponse> {
    let vrot = manager.fleet().find(key(&id)?)?;
    Ok(Json(view(&manager, &vrot)))
}

/// Measures what a VM is launched with, for the next start of its vRoT, in place of what was measured
/// for that before. Files come along as descriptors. Takes as long as it takes to read them.
#[utoipa::path(put, path = "/v1/vrots/{id}/launch", tag = "vrots", params(Id),
    request_body = LaunchRequest, responses((status = 200, body = LaunchView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn measure(
    State(manager): Managed,
    Extension(files): Extension<Files>,
    Path(id): Path<String>,
    Body(request): Body<LaunchRequest>,
) -> Result<Json<LaunchView>, ProblemResponse> {
    let key = key(&id)?;
    // Before anything is read.
    manager.fleet().check_measurable(key)?;
    let launch = measured(&manager, request, &files).await?;
    let prepared = transition(&manager, move |manager| async move {
        manager.fleet().prepare_launch(key, Some(launch)).await
    });
    let vrot = prepared.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Forgets what was measured for the next start.
#[utoipa::path(delete, path = "/v1/vrots/{id}/launch", tag = "vrots", params(Id),
    responses((status = 200, body = LaunchView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn forget(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<LaunchView>, ProblemResponse> {
    let key = key(&id)?;
    let forgotten = transition(&manager, move |manager| async move {
        manager.fleet().prepare_launch(key, None).await
    });
    let vrot = forgotten.await?;
    Ok(Json(view(&manager, &vrot)))
}

/// Measures what a VM is about to be launched with whose launcher sets its vRoT up and starts it by
/// itself, under swtpm's names: for that start, if it comes within five minutes. Files come along as descriptors.
#[utoipa::path(put, path = "/v1/vms/{vm}/launch", tag = "vrots", params(Vm),
    request_body = LaunchRequest, responses((status = 200, body = LaunchView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn announce(
    State(manager): Managed,
    Extension(files): Extension<Files>,
    Path(id): Path<String>,
    Body(request): Body<LaunchRequest>,
) -> Result<Json<LaunchView>, ProblemResponse> {
    let vm = vm(&id)?;
    let launch = measured(&manager, request, &files).await?;
    let told = announced_view(&manager, Some(&launch));
    manager.fleet().announce_launch(vm, Some(launch));
    Ok(Json(told))
}

/// Forgets what was announced for a VM's next start.
#[utoipa::path(delete, path = "/v1/vms/{vm}/launch", tag = "vrots", params(Vm),
    responses((status = 200, body = LaunchView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn withdraw(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<LaunchView>, ProblemResponse> {
    let vm = vm(&id)?;
    manager.fleet().announce_launch(vm, None);
    Ok(Json(announced_view(&manager, None)))
}

/// Of a VM whose vRoT may have to be made first.
fn announced_view(manager: &Manager, launch: Option<&Launch>) -> LaunchView {
    let config = manager.config();
    let state = launch.map_or(LaunchState::NotMeasured, |_| LaunchState::Prepared);
    let required = config.launch.requires(&config.swtpm.tenant);
    launch_view(required, state, launch)
}

/// Measures what came with a request. Given up with it: nothing was changed yet.
pub(super) async fn measured(
    manager: &Arc<Manager>,
    request: LaunchRequest,
    files: &Files,
) -> Result<Launch, ManagerError> {
    let files = files.take();
    let parts = parts_to_measure(request, &files);
    drop(files);
    Ok(manager.measuring().measure(parts?).await?)
}

/// What was measured, and what becomes of it.
pub(super) fn view(manager: &Manager, vrot: &Vrot) -> LaunchView {
    let record = vrot.record();
    let launch = record.launch.as_ref();
    let is_used_up = vrot
        .observed()
        .is_some_and(|observed| observed.has_changed_vmm());
    let state = match (launch.is_some(), record.lifecycle.is_running()) {
        (false, _) => LaunchState::NotMeasured,
        (true, false) => LaunchState::Prepared,
        (true, true) if is_used_up => LaunchState::UsedUp,
        (true, true) => LaunchState::InForce,
    };
    launch_view(manager.fleet().requires_launch(&record), state, launch)
}

fn launch_view(required: bool, state: LaunchState, launch: Option<&Launch>) -> LaunchView {
    LaunchView {
        required,
        state,
        digest: launch.map(|launch| *launch.digest()),
        parts: (launch.into_iter().flat_map(Launch::parts))
            .map(|part| LaunchPartView {
                part: part.id.to_string(),
                value: part.value.to_string(),
            })
            .collect(),
    }
}
