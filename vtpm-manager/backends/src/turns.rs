//! Turns of the backends that a manager takes over.
//!
//! After a restart on a busy host, most backends have answered their guests ahead of the store and
//! have state to hand over. All at once, they would fill the store's writer with it, and guests that
//! wait for their state would wait for that of everybody else. So a few at a time hand over theirs,
//! the one that has had it for longest first. Backends without such state have no need of a turn.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::folder::RuntimeFolder;

/// How many have their turn at a time: their states are one batch of the store.
const AT_A_TIME: usize = 32;
/// A turn that is not over by then is no reason to have others wait: its backend hangs, or its guest
/// never rests.
const LONGEST: Duration = Duration::from_millis(250);

/// A backend's turn; over when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _over: oneshot::Sender<Infallible>,
}

/// Waits for a turn.
#[derive(Debug)]
pub struct NextTurn(Option<oneshot::Receiver<Turn>>);

/// Gives the turns, in their order.
#[derive(Debug)]
pub struct Turns {
    waiting: Vec<oneshot::Sender<Turn>>,
    at_a_time: usize,
    longest: Duration,
}

impl Turns {
    /// Turns for the backends in these folders: each folder with its turn.
    pub fn of(folders: Vec<RuntimeFolder>) -> (Self, Vec<(RuntimeFolder, NextTurn)>) {
        let mut since: Vec<(Option<SystemTime>, RuntimeFolder)> = (folders.into_iter())
            .map(|folder| (folder.degraded_since(), folder))
            .collect();
        since.sort_by_key(|(since, _)| *since);
        let mut waiting = Vec::new();
        let folders = since.into_iter().map(|(since, folder)| {
            let turn = since.map(|_| {
                let (gives, turn) = oneshot::channel();
                waiting.push(gives);
                turn
            });
            (folder, NextTurn(turn))
        });
        let folders = folders.collect();
        let turns = Self {
            waiting,
            at_a_time: AT_A_TIME,
            longest: LONGEST,
        };
        (turns, folders)
    }

    /// Returns when all turns were given.
    pub async fn give(self) {
        let mut under_way = JoinSet::new();
        for next in self.waiting {
            if under_way.len() >= self.at_a_time {
                under_way.join_next().await;
            }
            let (turn, over) = oneshot::channel();
            // Where nobody waits for it any more, it is over at once.
            let _ = next.send(Turn { _over: turn });
            under_way.spawn(timeout(self.longest, over));
        }
    }
}

impl Turn {
    /// Returns when its backend is done, or the turn is over anyway.
    pub async fn over_when(self, done: impl Future<Output = ()>) {
        let _ = timeout(LONGEST, done).await;
    }
}

impl NextTurn {
    /// The turn, when it is this backend's; none if it needs none.
    pub async fn taken(self) -> Option<Turn> {
        // Turns that are not given any more keep nobody waiting.
        self.0?.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::{Context, Result, ensure};
    use backend_link::instance::Instance;
    use cert_chain::VrotId;
    use tokio::sync::mpsc;

    use super::*;

    /// Backends of which these have been answering ahead of the store for so many seconds.
    struct Backends {
        _folders: [tempfile::TempDir; 2],
        folders: Vec<RuntimeFolder>,
        _live: Vec<Instance>,
    }

    fn backends(degraded_for_s: &[Option<u64>]) -> Result<Backends> {
        let [runtime_dir, locks] = [tempfile::tempdir()?, tempfile::tempdir()?];
        let (mut folders, mut live) = (Vec::new(), Vec::new());
        for seconds in degraded_for_s {
            let folder = RuntimeFolder::of(runtime_dir.path(), locks.path(), VrotId::random());
            let lock = folder.lock().context("a lock")?;
            let instance = Instance::take(lock)?;
            if let Some(seconds) = seconds {
                instance.note(true)?;
                let since = SystemTime::now() - Duration::from_secs(*seconds);
                File::options()
                    .write(true)
                    .open(lock)?
                    .set_modified(since)?;
            }
            live.push(instance);
            folders.push(folder);
        }
        Ok(Backends {
            _folders: [runtime_dir, locks],
            folders,
            _live: live,
        })
    }

    #[tokio::test]
    async fn backends_without_unsaved_state_come_at_once_and_the_others_longest_first() -> Result<()>
    {
        let backends = backends(&[Some(1), None, Some(9), Some(5), None])?;
        let (turns, folders) = Turns::of(backends.folders.clone());
        let turns = Turns {
            at_a_time: 1,
            longest: Duration::from_secs(3600),
            ..turns
        };
        let (taken, mut order) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for (folder, next) in folders {
            let taken = taken.clone();
            tasks.spawn(async move {
                let turn = next.taken().await;
                let _ = taken.send((folder, turn.is_some()));
            });
        }
        let mut come = Vec::new();
        // Before anybody's turn has begun.
        for _ in 0..2 {
            come.push(order.recv().await.context("it waits for a turn")?);
        }
        tasks.spawn(turns.give());
        for _ in 0..3 {
            come.push(order.recv().await.context("it has no turn")?);
        }
        let numbers: Vec<_> = (come.iter())
            .map(|(folder, _)| backends.folders.iter().position(|known| known == folder))
            .collect();
        let (at_once, in_turn) = numbers.split_at(2);
        let mut at_once = at_once.to_vec();
        at_once.sort();
        ensure!(at_once == [Some(1), Some(4)], "{numbers:?}");
        ensure!(in_turn == [Some(2), Some(3), Some(0)], "{numbers:?}");
        ensure!(
            come.iter()
                .map(|(_, turn)| *turn)
                .eq([false, false, true, true, true])
        );
        Ok(())
    }

    #[tokio::test]
    async fn no_more_have_their_turn_at_a_time_than_the_store_takes_together() -> Result<()> {
        let backends = backends(&[Some(1); 12])?;
        let (turns, folders) = Turns::of(backends.folders.clone());
        let turns = Turns {
            at_a_time: 3,
            longest: Duration::from_secs(3600),
            ..turns
        };
        let at_once = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for (_, next) in folders {
            let at_once = Arc::clone(&at_once);
            tasks.spawn(async move {
                let _turn = next.taken().await.context("no turn")?;
                let others = at_once.fetch_add(1, Ordering::SeqCst);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                at_once.fetch_sub(1, Ordering::SeqCst);
                anyhow::Ok(others)
            });
        }
        turns.give().await;
        for others in tasks.join_all().await {
            ensure!(others? < 3);
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_backend_that_hangs_in_its_turn_keeps_nobody_waiting() -> Result<()> {
        let backends = backends(&[Some(3), Some(2)])?;
        let (turns, folders) = Turns::of(backends.folders.clone());
        let turns = Turns {
            at_a_time: 1,
            longest: Duration::from_millis(1),
            ..turns
        };
        let given = tokio::spawn(turns.give());
        let mut kept = Vec::new();
        for (_, next) in folders {
            let next = timeout(Duration::from_secs(30), next.taken()).await;
            kept.push(next.context("the other one keeps it")?.context("no turn")?);
        }
        given.await?;
        Ok(())
    }
}
