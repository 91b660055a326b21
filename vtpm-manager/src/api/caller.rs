//! The user at the other end of a connection, and what that user may do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api_types::WithCauses;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::problem::{ProblemResponse, Reason};
use super::{IMPORT, MAX_BODY, MAX_IMPORT};
use crate::audit::{Actor, Event};
use crate::manager::{Counter, Manager, Startup};
use crate::rate_limit::{Quota, Repetition};

/// The user at the other end of a connection, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    uid: Option<u32>,
}

/// What a caller may do, as far as the user decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallerClass {
    /// Root, or the manager's own user.
    Administrator,
    /// Named in the configuration.
    Allowed,
    /// Anybody else.
    Stranger,
}

impl Caller {
    /// The user at the other end of this stream.
    pub(super) fn of(stream: &UnixStream) -> Self {
        Self {
            uid: stream.peer_cred().ok().map(|peer| peer.uid()),
        }
    }

    /// What this user may do: root, the manager's own, and those configured may call.
    pub(super) fn class(self, configured: &[u32]) -> CallerClass {
        let own = nix::unistd::geteuid().as_raw();
        match self.uid {
            Some(uid) if uid == 0 || uid == own => CallerClass::Administrator,
            Some(uid) if configured.contains(&uid) => CallerClass::Allowed,
            _ => CallerClass::Stranger,
        }
    }

    #[cfg(test)]
    pub(super) fn with_uid(uid: u32) -> Self {
        Self { uid: Some(uid) }
    }
}

/// Decides which callers are served, and records what was refused.
pub(super) struct AccessControl {
    allowed_uids: Vec<u32>,
    /// Where refusals are written down, once there is a manager: before, nothing can be changed.
    manager: Option<Arc<Manager>>,
    strangers: Mutex<Strangers>,
}

/// How many refusals of strangers are written down, since anybody can come again and again: of
/// each one a minute, and so many of all of them.
struct Strangers {
    each: HashMap<Option<u32>, Repetition>,
    all: Quota,
}

/// For a body as a whole; the longest has some ten kilobytes.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
const STRANGERS_PER_MINUTE: u32 = 12;
/// Users that are told apart; somebody can have tens of thousands (subuid(5)).
const MAX_STRANGERS: usize = 256;

impl AccessControl {
    /// Of a manager that serves.
    pub(super) fn of(manager: &Arc<Manager>) -> Arc<Self> {
        Self::new(&manager.config().allowed_uids, Some(Arc::clone(manager)))
    }

    /// Of a manager that starts.
    pub(super) fn of_starting(startup: &Startup) -> Arc<Self> {
        Self::new(&startup.config().allowed_uids, None)
    }

    fn new(allowed_uids: &[u32], manager: Option<Arc<Manager>>) -> Arc<Self> {
        Arc::new(Self {
            allowed_uids: allowed_uids.to_owned(),
            manager,
            strangers: Mutex::new(Strangers {
                each: HashMap::new(),
                all: Quota::per_minute(STRANGERS_PER_MINUTE, Instant::now()),
            }),
        })
    }

    /// How often a stranger came since that was last written down, if it is time to do so.
    fn count_stranger(&self, caller: Caller) -> Option<u64> {
        let strangers = self.strangers.lock();
        let mut strangers = strangers.unwrap_or_else(PoisonError::into_inner);
        strangers.count(caller, Instant::now())
    }
}

impl Strangers {
    fn count(&mut self, caller: Caller, now: Instant) -> Option<u64> {
        if self.each.len() >= MAX_STRANGERS && !self.each.contains_key(&caller.uid) {
            self.each.clear();
        }
        let repetition = self.each.entry(caller.uid).or_default();
        let times = repetition.count(now)?;
        self.all.admit(now).then_some(times)
    }
}

/// Turns strangers away, and writes refusals of what would have changed something down.
pub(super) async fn check(
    State(access): State<Arc<AccessControl>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let what = format!("{method} {}", request.uri().path());
    let class = caller.class(&access.allowed_uids);
    let response = match caller.uid {
        Some(uid) if class != CallerClass::Stranger => match with_whole_body(request).await {
            Ok(request) => Actor::of_uid(uid).orders(next.run(request)).await,
            Err(problem) => problem.into_response(),
        },
        Some(uid) => stranger(format!(
            "user {uid} may not call the manager: run this as root, or add the user to \
             `allowed_uids` in the configuration"
        )),
        None => stranger("the kernel did not tell who calls".to_owned()),
    };
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    tracing::debug!(request = what, status = status.as_u16(), "answered");
    if refused && (method != Method::GET || status == StatusCode::FORBIDDEN) {
        let reason = response.extensions().get::<Reason>().cloned();
        access.refused(caller, what, status, reason).await;
    }
    response
}

impl AccessControl {
    /// Writes a refusal down. That the manager is not ready yet is none: the request is to be sent
    /// again.
    async fn refused(
        &self,
        caller: Caller,
        request: String,
        status: StatusCode,
        reason: Option<Reason>,
    ) {
        let is_opening = reason.as_ref().is_some_and(Reason::is_opening);
        let (Some(manager), false) = (&self.manager, is_opening) else {
            return;
        };
        manager.fleet().counters().increment(Counter::Refused);
        let times = match status {
            StatusCode::FORBIDDEN => self.count_stranger(caller),
            _ => Some(1),
        };
        let Some(times) = times else {
            return;
        };
        let mut reason = reason.map_or_else(|| status.to_string(), |reason| reason.detail);
        if times > 1 {
            reason = format!("{times} times since the last such line: {reason}");
        }
        let event = Event::Refused {
            uid: caller.uid.unwrap_or(u32::MAX),
            request: request.into(),
            reason: reason.into(),
        };
        if let Err(error) = manager.guarded().record(event).await {
            tracing::error!(error = %WithCauses(&error), "a refusal could not be recorded");
        }
    }
}

/// A request with its whole body, which must be there within a limit of time. Nothing is begun before.
async fn with_whole_body(request: Request) -> Result<Request, ProblemResponse> {
    let (head, body) = request.into_parts();
    let limit = match head.uri.path() {
        IMPORT => MAX_IMPORT,
        _ => MAX_BODY,
    };
    match timeout(BODY_DEADLINE, to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, Body::from(body))),
        Ok(Err(error)) => Err(ProblemResponse::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
            format!("the body cannot be taken, at most {limit} bytes are: {error}"),
        )),
        Err(_) => Err(ProblemResponse::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            format!(
                "the body was not there within {} s: send the request anew",
                BODY_DEADLINE.as_secs()
            ),
        )),
    }
}

fn stranger(detail: String) -> Response {
    ProblemResponse::new(StatusCode::FORBIDDEN, "caller-not-allowed", detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_that_comes_all_the_time_makes_one_line_a_minute_and_is_counted() {
        let start = Instant::now();
        let mut strangers = Strangers {
            each: HashMap::new(),
            all: Quota::per_minute(STRANGERS_PER_MINUTE, start),
        };
        let mut lines = |uid, at: Instant| -> Vec<u64> {
            let caller = Caller::with_uid(uid);
            (0..1000)
                .filter_map(|_| strangers.count(caller, at))
                .collect()
        };
        assert_eq!(lines(1000, start), [1]);
        assert_eq!(lines(1000, start + Duration::from_secs(60)), [1000]);
        // Many users do not make many lines either.
        let all: usize = (2000..9000).map(|uid| lines(uid, start).len()).sum();
        assert!(all <= 12, "{all}");
    }

    #[test]
    fn only_known_users_are_allowed() {
        let caller = |uid| Caller { uid };
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(caller(Some(0)).class(&[]), CallerClass::Administrator);
        assert_eq!(caller(Some(own)).class(&[]), CallerClass::Administrator);
        assert_eq!(caller(Some(4711)).class(&[4711]), CallerClass::Allowed);
        assert_eq!(caller(Some(4711)).class(&[4712]), CallerClass::Stranger);
        assert_eq!(caller(None).class(&[4711]), CallerClass::Stranger);
    }
}
