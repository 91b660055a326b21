//! An orderly end: at SIGTERM or SIGINT, what came is signed, and no more is taken.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::stream::collector::Collector;

/// Ends the stream at the first of these signals. The thread that waits for it ends with the process.
pub(crate) fn at_signals(collector: &Arc<Collector>) -> io::Result<()> {
    let collector = Arc::clone(collector);
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        collector.end(None);
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}
