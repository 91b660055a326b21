//! What a page reads as long as it is open: lines of JSON.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::hub::Viewer;

/// A body that goes on.
#[derive(Debug)]
pub(crate) struct Stream {
    lines: mpsc::Receiver<Bytes>,
}

/// Lines that wait for the browser.
const WAITING: usize = 32;
/// A browser that reads nothing for so long has lost interest.
const PATIENCE: Duration = Duration::from_secs(30);
/// The page knows that the connection lives by an empty line.
const ALIVE: Duration = Duration::from_secs(5);

impl Stream {
    /// What somebody who looks is told.
    pub(crate) fn of(viewer: Viewer) -> Self {
        let (sender, lines) = mpsc::channel(WAITING);
        tokio::spawn(tell(viewer, sender));
        Self { lines }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = self.lines.poll_recv(cx);
        line.map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// Tells until the browser has gone, or does not read.
async fn tell(mut viewer: Viewer, sender: mpsc::Sender<Bytes>) {
    loop {
        for line in viewer.everything() {
            if !send(&sender, line).await {
                return;
            }
        }
        loop {
            let told = tokio::select! {
                change = timeout(ALIVE, viewer.change()) => change,
                () = sender.closed() => return,
            };
            let bytes = match told {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(_) => Bytes::from_static(b"\n"),
            };
            if !send(&sender, bytes).await {
                return;
            }
        }
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, bytes: Bytes) -> bool {
    matches!(timeout(PATIENCE, sender.send(bytes)).await, Ok(Ok(())))
}
