//! Who calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::problem::{Problem, Reason};
use crate::audit::Event;
use crate::causes::WithCauses;
use crate::evidence::Quota;
use crate::manager::{Counter, Manager};

/// The user at the other end of a connection, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self {
            uid: stream.io().peer_cred().ok().map(|peer| peer.uid()),
        }
    }
}

impl Caller {
    /// The user's id; the highest there is where the kernel did not tell.
    pub(super) fn uid(self) -> u32 {
        self.uid.unwrap_or(u32::MAX)
    }

    /// Whether this user may call: root, the manager's own, and those configured.
    fn is_allowed(self, configured: &[u32]) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        self.uid
            .is_some_and(|uid| uid == 0 || uid == own || configured.contains(&uid))
    }
}

/// Who stands at the door of the API.
pub(super) struct Doorkeeper {
    manager: Arc<Manager>,
    /// How many refusals of strangers are written down: anybody can come again and again.
    strangers: Mutex<Quota>,
}

const STRANGERS_PER_MINUTE: u32 = 60;

impl Doorkeeper {
    pub(super) fn new(manager: Arc<Manager>) -> Arc<Self> {
        Arc::new(Self {
            manager,
            strangers: Mutex::new(Quota::per_minute(STRANGERS_PER_MINUTE, Instant::now())),
        })
    }

    fn admits_stranger(&self) -> bool {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.admit(Instant::now())
    }
}

/// Turns strangers away, and writes refusals of what would have changed something down.
pub(super) async fn check(
    State(keeper): State<Arc<Doorkeeper>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let manager = &keeper.manager;
    let method = request.method().clone();
    let what = format!("{method} {}", request.uri().path());
    let response = if caller.is_allowed(&manager.config().allowed_uids) {
        next.run(request).await
    } else {
        let detail = match caller.uid {
            Some(uid) => format!(
                "user {uid} may not call the manager: run this as root, or add the user to \
                 `allowed_uids` in the configuration"
            ),
            None => "the kernel did not tell who calls".to_owned(),
        };
        Problem::new(StatusCode::FORBIDDEN, "caller-not-allowed", detail).into_response()
    };
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    tracing::debug!(request = what, status = status.as_u16(), "answered");
    if refused && (method != Method::GET || status == StatusCode::FORBIDDEN) {
        manager.counters().increment(Counter::Refused);
        if status == StatusCode::FORBIDDEN && !keeper.admits_stranger() {
            return response;
        }
        let reason = response.extensions().get::<Reason>();
        let event = Event::Refused {
            uid: caller.uid(),
            request: what.into(),
            reason: reason
                .map_or_else(|| status.to_string(), |reason| reason.0.clone())
                .into(),
        };
        if let Err(error) = manager.record(event).await {
            tracing::error!(error = %WithCauses(&error), "a refusal could not be recorded");
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_users_are_allowed() {
        let caller = |uid| Caller { uid };
        let own = nix::unistd::geteuid().as_raw();
        assert!(caller(Some(0)).is_allowed(&[]));
        assert!(caller(Some(own)).is_allowed(&[]));
        assert!(caller(Some(4711)).is_allowed(&[4711]));
        assert!(!caller(Some(4711)).is_allowed(&[4712]));
        assert!(!caller(None).is_allowed(&[4711]));
    }
}
