//! The manager's API: HTTP and JSON on a Unix socket.
//!
//! Who may call is decided by the kernel's word on the peer (`SO_PEERCRED`): root, the manager's
//! own user, and configured users. Errors are problem details (RFC 9457). The description of the
//! API is served at `/v1/openapi.json`, metrics for Prometheus at `/metrics`.

mod admission;
mod caller;
mod description;
mod events;
mod evidence;
mod host;
mod host_view;
mod launch;
mod messages;
mod metrics;
pub(crate) mod order;
mod problem;
mod server;
mod starting;
pub(crate) mod vrots;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{MethodRouter, get, post, put};
use axum::{Router, middleware};
use socket_file::make_room;
use tokio::net::UnixListener;

use crate::manager::Manager;

use caller::AccessControl;

pub use caller::Caller;
pub use description::description;
pub use server::Api;

/// The longest request but one is an enrolment message.
const MAX_BODY: usize = cert_chain::enrolment::MAX_MESSAGE;
const IMPORT: &str = "/v1/vrots/import";
/// The longest has a TPM's state, of at most 512 KiB, in hexadecimal digits.
const MAX_IMPORT: usize = 1024 * 1024 + MAX_BODY;

/// Every route with its methods: what [`description()`] must describe.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<Manager>>)> {
    vec![
        ("/v1/host", get(host::show)),
        ("/v1/host/init", post(host::initialise)),
        ("/v1/host/recover", post(host::recover)),
        ("/v1/host/policy", get(host::policy)),
        ("/v1/host/policy/approvals", post(host::approve)),
        ("/v1/host/enrolment/request", post(host::request)),
        ("/v1/host/enrolment/answer", post(host::answer)),
        ("/v1/host/enrolment/certificate", post(host::install)),
        ("/v1/audit", get(host::audit)),
        ("/v1/events", get(events::follow)),
        ("/v1/evidence", post(evidence::make)),
        ("/v1/audit/accept", post(host::accept_audit)),
        ("/v1/vrots", get(vrots::list).post(vrots::create)),
        (IMPORT, post(vrots::import)),
        ("/v1/vrots/{id}", get(vrots::show).delete(vrots::delete)),
        (
            "/v1/vrots/{id}/launch",
            get(launch::show)
                .put(launch::measure)
                .delete(launch::forget),
        ),
        (
            "/v1/vms/{vm}/launch",
            put(launch::announce).delete(launch::withdraw),
        ),
        ("/v1/vrots/{id}/start", post(vrots::start)),
        ("/v1/vrots/{id}/stop", post(vrots::stop)),
        ("/v1/vrots/{id}/suspend", post(vrots::suspend)),
        ("/v1/vrots/{id}/resume", post(vrots::resume)),
        ("/v1/vrots/{id}/reset", post(vrots::reset)),
        ("/v1/vrots/{id}/folder", post(vrots::accept_folder)),
        (
            "/v1/vrots/{id}/identity",
            get(vrots::identity).post(vrots::renew_identity),
        ),
        ("/v1/vrots/{id}/pcrs", get(evidence::pcrs)),
        ("/v1/vrots/{id}/qemu-args", get(vrots::qemu_arguments)),
        ("/v1/openapi.json", get(description::serve)),
        ("/metrics", get(metrics::serve)),
    ]
}

/// The paths of all routes.
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, _)| path).collect()
}

/// What answers a request, once it is known who calls.
fn router(manager: &Arc<Manager>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods)
        })
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(manager),
            host::store_is_open,
        ))
        // Bodies are read, with their limit, before anything else.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            AccessControl::of(manager),
            caller::check,
        ))
        .with_state(Arc::clone(manager))
}

/// Listens on a socket that anybody may connect to: who is served is decided afterwards, with a
/// reason. A socket that a dead manager left is replaced; anything else at that path stays.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    make_room(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_in_the_place_of_the_socket_is_left_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("precious");
        std::fs::write(&path, "contents")?;
        let refused = listen(&path).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|error| error.contains("no socket")));
        assert_eq!(std::fs::read_to_string(&path)?, "contents");

        std::fs::remove_file(&path)?;
        drop(listen(&path)?);
        listen(&path)?;
        Ok(())
    }
}
