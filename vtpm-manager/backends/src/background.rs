//! Tasks beside those of callers. Each belongs to one owner, which ends with all of them joined.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one owner.
#[derive(Debug, Default)]
pub struct Background {
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Background {
    /// Does something until the owner ends: then it is given up where it waits, as by a crash.
    pub fn until_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tasks
            .spawn(async move { ending.run_until_cancelled_owned(work).await });
    }

    /// Does something to its end, for which the owner waits when it ends.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(work)
    }

    /// The same with what blocks, on a thread where it may.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.tasks.spawn_blocking(work);
    }

    /// What the work comes to; none, if the owner ends before.
    pub async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.ending.run_until_cancelled(work).await
    }

    /// Waits for so long; whether the owner goes on after that.
    pub async fn pause(&self, time: Duration) -> bool {
        self.unless_ended(sleep(time)).await.is_some()
    }

    /// Whether the owner ends.
    pub fn is_ending(&self) -> bool {
        self.ending.is_cancelled()
    }

    /// From now on, nothing begins any more, and what waits is given up.
    pub fn end(&self) {
        self.ending.cancel();
        self.tasks.close();
    }

    /// Ends, and waits so long for everything that is under way; how much of it is left after that.
    pub async fn join_within(&self, time: Duration) -> usize {
        self.end();
        let joined = timeout(time, self.tasks.wait()).await;
        joined.map_or_else(|_| self.tasks.len(), |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn an_owner_that_ends_gives_up_what_waits_and_joins_what_was_begun() -> anyhow::Result<()>
    {
        let background = Background::default();
        background.until_the_end(pending());
        let (finish, finished) = oneshot::channel::<()>();
        let spawned = background.spawn(finished);

        assert_eq!(background.join_within(Duration::from_millis(1)).await, 1);
        assert!(background.is_ending());
        assert!(!background.pause(LONG).await);

        let _ = finish.send(());
        assert_eq!(background.join_within(LONG).await, 0);
        assert!(spawned.await?.is_ok());
        Ok(())
    }
}
