//! Orders: carried out to their end, on behalf of whoever gave them.

use std::future::Future;
use std::sync::Arc;

use crate::audit::Actor;
use crate::manager::{Manager, ManagerError};

/// Does something to its end, even if the client goes away meanwhile: what stopped half-way would
/// leave a backend that nobody knows, or a change of which the audit log does not tell.
pub(super) async fn to_its_end<T, E, F>(
    manager: &Arc<Manager>,
    order: impl FnOnce(Arc<Manager>) -> F,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<ManagerError> + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let work = order(Arc::clone(manager));
    let task = match Actor::current() {
        Some(actor) => tokio::spawn(actor.orders(work)),
        None => tokio::spawn(work),
    };
    task.await
        .map_err(|source| E::from(ManagerError::Task { source }))?
}
