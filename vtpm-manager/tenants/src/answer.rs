//! Long answers: what is kept of one is kept until it is taken, and no longer than a deadline.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

/// When the answer under way on a connection must have been taken. One at a time is (HTTP/1.1).
#[derive(Clone, Debug, Default)]
pub(crate) struct AnswerDeadline(watch::Sender<Option<Instant>>);

/// An answer that is not taken yet. Dropped, it gives the turn to the next one.
struct Untaken {
    rest: Bytes,
    deadline: AnswerDeadline,
    _turn: OwnedSemaphorePermit,
}

/// Handed over at a time: so much more than the rest of an answer a connection may hold.
const PART: usize = 16 * 1024;

impl AnswerDeadline {
    /// Waits until an answer has not been taken in time; for ever, as long as all are.
    pub(crate) async fn passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let until = *changes.borrow_and_update();
            let passed = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = passed => return,
                // The sender is this one's own.
                _ = changes.changed() => {}
            }
        }
    }

    /// An answer's body that must be taken within this time. The turn is kept meanwhile.
    pub(crate) fn body(&self, bytes: Bytes, turn: OwnedSemaphorePermit, within: Duration) -> Body {
        self.0.send_replace(Some(Instant::now() + within));
        let untaken = Untaken {
            rest: bytes,
            deadline: self.clone(),
            _turn: turn,
        };
        Body::from_stream(stream::unfold(untaken, |mut untaken| async {
            if untaken.rest.is_empty() {
                return None;
            }
            let length = untaken.rest.len().min(PART);
            // A copy: a part of the whole would keep the whole.
            let part = Bytes::copy_from_slice(&untaken.rest.split_to(length));
            Some((Ok::<_, Infallible>(part), untaken))
        }))
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        self.deadline.0.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyhow::{Context, Result};
    use axum::body::to_bytes;
    use futures_util::StreamExt;
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn an_answer_keeps_its_turn_until_it_is_taken() -> Result<()> {
        let turns = Arc::new(Semaphore::new(1));
        let deadline = AnswerDeadline::default();
        let set = Bytes::from(vec![7; 2 * PART + 1]);
        let begin = async |within| {
            let turn = Arc::clone(&turns).acquire_owned().await?;
            Ok::<_, anyhow::Error>(deadline.body(set.clone(), turn, within))
        };
        let mut first = begin(Duration::from_secs(3600)).await?.into_data_stream();
        assert_eq!(first.next().await.context("a part")??.len(), PART);
        assert_eq!(turns.available_permits(), 0);
        // Given up with its connection.
        drop(first);
        let second = begin(Duration::from_secs(3600)).await?;
        assert_eq!(turns.available_permits(), 0);
        assert_eq!(to_bytes(second, usize::MAX).await?, set);
        assert_eq!(turns.available_permits(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn the_deadline_of_an_answer_passes_unless_it_was_taken() -> Result<()> {
        let turns = Arc::new(Semaphore::new(2));
        let deadline = AnswerDeadline::default();
        let begin = async |within| {
            let turn = Arc::clone(&turns).acquire_owned().await?;
            Ok::<_, anyhow::Error>(deadline.body(Bytes::from_static(b"a set"), turn, within))
        };
        to_bytes(begin(MOMENT).await?, usize::MAX).await?;
        assert!(timeout(2 * MOMENT, deadline.passed()).await.is_err());
        let _untaken = begin(MOMENT).await?;
        deadline.passed().await;
        Ok(())
    }
}
