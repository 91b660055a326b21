//! The log of a program: one for the process.
//!
//! [`start`] has a thread write it to standard error, and is for programs that may have threads.
//! [`start_without_thread`] leaves it to the program's own loop to [pass lines on](pass_on).

mod capture;
mod journal;
mod limit;
mod line;
mod queue;
mod stderr;
mod writer;

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use capture::TakenOver;
use limit::Limit;
use queue::{Bounds, Queue};
use writer::Lines;

pub use line::{ACCEPTED, FOREIGN, Line};
pub use queue::{Losses, Passed};
pub use stderr::Stderr;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, origin, what happened.
    Text,
    /// One JSON object a line.
    Json,
    /// As text, without time and level: for a program whose log another one writes.
    Bare,
}

/// While it lives, the log is written. At its end, what is left is, as far as that takes no longer
/// than a second, and standard error is the process's own again.
#[derive(Debug)]
#[must_use = "the last lines are written when it is dropped"]
pub struct Guard {
    taken_over: Option<TakenOver>,
}

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// A storm of starts writes some thousand lines before a slow terminal has taken the first.
const OF_A_PROGRAM: Bounds = Bounds {
    lines: 8192,
    bytes: 2 * 1024 * 1024,
};
/// There is one backend for each VM.
const OF_A_BACKEND: Bounds = Bounds {
    lines: 128,
    bytes: 32 * 1024,
};
/// What the last lines may take.
const ENDING: Duration = Duration::from_secs(1);

/// Has a thread write what passes `filter` to standard error. Whatever else writes there from now
/// on, as C libraries do, becomes lines of this log, with the same bounds. systemd's journal is told the level of
/// each line, and has time and level of its own: they are not in the text then.
pub fn start(filter: impl Layer<Registry> + Send + Sync, format: Format) -> Guard {
    let is_journal = journal::is_standard_error();
    let format = match format {
        Format::Text if is_journal => Format::Bare,
        other => other,
    };
    let queue = set_up(filter, format, OF_A_PROGRAM);
    let (mut stderr, captured, taken_over) = capture::take_over_standard_error();
    if is_journal {
        stderr = stderr.with_levels();
    }
    let writer = Arc::clone(&queue);
    // Without the thread nothing is written, and the queue counts what is lost.
    let _ = thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            loop {
                writer.wait();
                writer.pass_on(&mut |line| stderr.write(line));
            }
        });
    if let Some(captured) = captured {
        let _ = thread::Builder::new()
            .name("standard-error".to_owned())
            .spawn(move || capture::log_lines(captured));
    }
    Guard { taken_over }
}

/// Keeps what passes `filter` until it is [passed on](pass_on).
pub fn start_without_thread(filter: impl Layer<Registry> + Send + Sync, format: Format) {
    set_up(filter, format, OF_A_BACKEND);
}

fn set_up(
    filter: impl Layer<Registry> + Send + Sync,
    format: Format,
    bounds: Bounds,
) -> Arc<Queue> {
    let queue = Arc::clone(QUEUE.get_or_init(|| Arc::new(Queue::bounded(bounds))));
    let lines = Lines::to(Arc::clone(&queue), format);
    let log = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(lines);
    let log = match format {
        Format::Text => log.boxed(),
        Format::Json => log.json().boxed(),
        Format::Bare => log.without_time().with_level(false).boxed(),
    };
    // Where a log was set up already, that one stays in force.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(Limit::counting_in(Arc::clone(&queue)))
        .with(log)
        .try_init();
    queue
}

/// Hands the lines that wait to `sink`, one after the other, until there is none or it takes none.
pub fn pass_on(sink: &mut dyn FnMut(&Line) -> Passed) {
    if let Some(queue) = QUEUE.get() {
        queue.pass_on(sink);
    }
}

/// Whether something waits to be passed on.
pub fn is_waiting() -> bool {
    QUEUE.get().is_some_and(|queue| queue.is_waiting())
}

/// Forgets what waits: in a forked process, whose parent writes these lines.
pub fn forget() {
    if let Some(queue) = QUEUE.get() {
        queue.forget();
    }
}

/// How many lines are missing from this process's log so far.
pub fn losses() -> Losses {
    QUEUE.get().map(|queue| queue.losses()).unwrap_or_default()
}

/// Waits until what was said so far is written, but no longer than a second.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.wait_until_empty(Instant::now() + ENDING);
    }
}

/// Says in the log where a panic took place, and then does `then`.
pub fn on_panic(then: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        let place = place.unwrap_or_else(|| "an unknown place".to_owned());
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let reason = panic.payload_as_str().unwrap_or("of an unknown kind");
        tracing::error!(
            place,
            thread,
            reason,
            "a fault in this program: it panicked"
        );
        then(&place);
    }));
}

impl Drop for Guard {
    fn drop(&mut self) {
        // First: a line that comes from now on has nobody who would take it out of the pipe in time.
        drop(self.taken_over.take());
        flush();
    }
}
