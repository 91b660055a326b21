//! The API's description in OpenAPI.

use api_types::Problem;
use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use crate::requests;

/// What `GET /v1/openapi.json` serves.
pub fn description() -> Document {
    Description::openapi()
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "description",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(crate) async fn serve() -> Json<Document> {
    Json(description())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vtpm-manager for tenants",
        description = "Virtualized roots of trust of one tenant's VMs on one host. HTTP/1.1 over TLS \
                       1.3; the client's certificate says which tenant asks. Errors are problem details \
                       (RFC 9457).",
    ),
    paths(
        requests::list,
        requests::show,
        requests::evidence,
        requests::follow,
        serve,
    ),
    components(schemas(Problem))
)]
struct Description;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_described_and_no_other() {
        let described: BTreeSet<String> = description().paths.paths.into_keys().collect();
        let served = crate::requests::routes().into_iter();
        let served: BTreeSet<String> = served.map(|(path, _)| path.to_owned()).collect();
        assert_eq!(described, served);
    }
}
