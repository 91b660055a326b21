//! How many vRoTs are made at a time.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::{ManagerError, blocking};

/// Where vRoTs are made. Who finds no place waits for one, in the order of arrival.
#[derive(Debug)]
pub(super) struct Workshop(Arc<Semaphore>);

/// A place in the workshop.
#[derive(Debug)]
pub(super) struct Place {
    // Fails only where places are closed, which nobody does.
    _permit: Result<OwnedSemaphorePermit, AcquireError>,
}

/// Each place holds a thread while a vRoT is made, and those threads also serve everybody else
/// who waits for disk or TPM. The physical TPM makes one signature at a time, three for each
/// vRoT, and so a few places keep it busy.
const PLACES: usize = 8;

impl Default for Workshop {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }
}

impl Workshop {
    /// Waits for a place.
    pub(super) async fn place(&self) -> Place {
        Place {
            _permit: Arc::clone(&self.0).acquire_owned().await,
        }
    }
}

impl Place {
    /// Does what blocks, and frees the place when it is done, even if nobody waits for it any
    /// more.
    pub(super) async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ManagerError> {
        blocking(move || {
            let done = work();
            drop(self);
            done
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use anyhow::{Context, Result};
    use tokio::runtime::Builder;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// For a test that has failed: a thread that is never free.
    const NEVER: Duration = Duration::from_secs(20);

    #[test]
    fn many_vrots_in_the_making_leave_threads_for_everybody_else() -> Result<()> {
        let threads = PLACES + 1;
        let runtime = Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(threads)
            .build()?;
        runtime.block_on(async {
            let workshop = Arc::new(Workshop::default());
            let (finish, unfinished) = channel::<()>();
            let unfinished = Arc::new(Mutex::new(unfinished));
            let mut orders = JoinSet::new();
            for _ in 0..3 * threads {
                let (workshop, unfinished) = (Arc::clone(&workshop), Arc::clone(&unfinished));
                orders.spawn(async move {
                    let place = workshop.place().await;
                    place
                        .work(move || unfinished.lock().is_ok_and(|line| line.recv().is_err()))
                        .await
                });
            }
            // Every order has been looked at once before this.
            tokio::task::yield_now().await;
            let served = timeout(NEVER, blocking(|| "served")).await;
            // Before any check, because the runtime waits for its threads at its end.
            drop(finish);
            let served = served.context("no thread was free while vRoTs were made")?;
            assert_eq!(served?, "served");
            let made = orders.join_all().await;
            assert!(made.into_iter().all(|made| matches!(made, Ok(true))));
            anyhow::Ok(())
        })
    }
}
