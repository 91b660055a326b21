//! Work that blocks, off the threads that serve everybody.

use tokio::task::spawn_blocking;

use super::error::ManagerError;

/// Runs what blocks on a thread where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ManagerError> {
    spawn_blocking(work)
        .await
        .map_err(|source| ManagerError::Task { source })
}
