//! Somebody who follows events.

use std::sync::Arc;
use std::time::Duration;

use api_types::wire::EventLine;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::log::{EventLog, Scope};

/// Somebody who follows events. What it has not read is kept in the log, and nowhere else.
#[derive(Debug)]
pub struct Follower {
    log: Arc<EventLog>,
    scope: Scope,
    /// Number of the next event that it is told.
    position: u64,
    hello: Option<EventLine>,
    changed: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    pub(super) keep_alive: Duration,
}

/// Lines that are handed over at a time: some thirty kilobytes.
const MOST_LINES: usize = 128;

/// While nothing happens, an empty line shows a follower that its connection lives, and this end that
/// the follower does.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

impl EventLog {
    /// Follows what happens from now on, or from the event after a number on, which is of the present
    /// start of the manager. Numbers of another start say nothing here: all that is kept follows.
    pub fn follow(
        self: &Arc<Self>,
        scope: Scope,
        after: Option<u64>,
        of: Option<Uuid>,
    ) -> Follower {
        let (hello, position, changed) = self.begin(&scope, after, of);
        Follower {
            log: Arc::clone(self),
            scope,
            position,
            hello: Some(hello),
            changed,
            ending: self.ending(),
            keep_alive: KEEP_ALIVE,
        }
    }
}

impl Follower {
    /// The next lines, once there are any, or an empty one for a sign of life. None when the manager
    /// ends.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(text(&[hello]));
        }
        loop {
            if *self.ending.borrow_and_update() {
                return None;
            }
            // Before it is read: what happens meanwhile is noticed.
            self.changed.mark_unchanged();
            let lines = self.log.read(&self.scope, &mut self.position, MOST_LINES);
            if !lines.is_empty() {
                return Some(text(&lines));
            }
            let something = async {
                tokio::select! {
                    changed = self.changed.changed() => changed,
                    ending = self.ending.changed() => ending,
                }
            };
            match timeout(self.keep_alive, something).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(Bytes::from_static(b"\n")),
            }
        }
    }
}

/// A line each.
fn text(lines: &[EventLine]) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // It has no map with keys that are no strings, which is all that can fail.
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}
