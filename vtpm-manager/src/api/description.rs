//! The API's description in OpenAPI.

use api_types::{Problem, wire};
use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use super::{events, evidence, host, launch, metrics, vrots};

/// What `GET /v1/openapi.json` serves.
pub fn description() -> Document {
    Description::openapi()
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "manager",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn serve() -> Json<Document> {
    Json(description())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vtpm-manager",
        description = "Virtualized roots of trust of one host. HTTP over a Unix socket; callers \
                       are known by their user id. Errors are problem details (RFC 9457).",
    ),
    paths(
        host::show,
        host::initialise,
        host::recover,
        host::policy,
        host::approve,
        host::request,
        host::answer,
        host::install,
        host::audit,
        events::follow,
        evidence::make,
        host::accept_audit,
        vrots::list,
        vrots::create,
        vrots::import,
        vrots::show,
        vrots::delete,
        launch::show,
        launch::measure,
        launch::forget,
        launch::announce,
        launch::withdraw,
        vrots::start,
        vrots::stop,
        vrots::suspend,
        vrots::resume,
        vrots::reset,
        vrots::accept_folder,
        vrots::identity,
        vrots::renew_identity,
        evidence::pcrs,
        vrots::qemu_arguments,
        serve,
        metrics::serve,
    ),
    components(schemas(Problem, wire::LaunchSource, wire::TpmDeviceModel))
)]
struct Description;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_described_and_no_other() {
        let described: BTreeSet<String> = description().paths.paths.into_keys().collect();
        let served: BTreeSet<String> = super::super::paths()
            .into_iter()
            .map(str::to_owned)
            .collect();
        assert_eq!(described, served);
    }
}
