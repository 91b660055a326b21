//! Orders: carried out to their end, on behalf of their callers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use guarded_state::journal::RetriedBy;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::audit::Actor;
use crate::manager::{Manager, ManagerError};

/// How long a client waits before it is told that nothing becomes durable.
const STALL_CHECK: Duration = Duration::from_secs(5);

/// Does something to its end, even if the client goes away meanwhile: what stopped half-way would
/// leave a change of which the audit log does not tell.
pub(super) async fn run_to_completion<T, E, F>(
    manager: &Arc<Manager>,
    order: impl FnOnce(Arc<Manager>) -> F,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<ManagerError> + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    begin(manager, order(Arc::clone(manager)))
        .await
        .map_err(|source| E::from(ManagerError::Task { source }))?
}

/// The same for a transition of a vRoT, which has to become durable: the client is not left waiting
/// for a disk or a TPM that may never come back.
pub(crate) async fn transition<T, F>(
    manager: &Arc<Manager>,
    order: impl FnOnce(Arc<Manager>) -> F,
) -> Result<T, ManagerError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ManagerError>> + Send + 'static,
{
    let journal = manager.guarded().journal();
    if let Some(stall) = journal.stall()
        && stall.retried_by == RetriedBy::Writer
    {
        let reason = WithCauses(&*stall.error).to_string();
        return Err(ManagerError::StoreStalled { reason });
    }
    manager.host().anchor().check_answers()?;
    let mut task = begin(manager, order(Arc::clone(manager)));
    loop {
        match timeout(STALL_CHECK, &mut task).await {
            Ok(ended) => return ended.map_err(|source| ManagerError::Task { source })?,
            Err(_) => {
                if let Some(stall) = journal.stall() {
                    let reason = WithCauses(&*stall.error).to_string();
                    return Err(ManagerError::Unfinished { reason });
                }
            }
        }
    }
}

/// A task of the manager's: it ends with its work, not with the request.
fn begin<T: Send + 'static>(
    manager: &Manager,
    work: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    match Actor::current() {
        Some(actor) => manager.carry_out(actor.orders(work)),
        None => manager.carry_out(work),
    }
}
