//! How far long work is, on a terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

/// What is read or written through this is counted, and shown on standard error once it takes long, if that is
/// a terminal.
pub(super) struct Watched<T> {
    inner: T,
    progress: Progress,
}

struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    /// When the next line is due; none where nobody looks.
    due: Option<Instant>,
    shown: bool,
}

const EVERY: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

impl<T> Watched<T> {
    /// Work on `total` bytes; zero if that is not known.
    pub(super) fn new(inner: T, what: &'static str, total: u64) -> Self {
        Self {
            inner,
            progress: Progress {
                what,
                total,
                done: 0,
                due: io::stderr().is_terminal().then(|| Instant::now() + EVERY),
                shown: false,
            },
        }
    }
}

impl Progress {
    fn on(&mut self, bytes: usize) {
        self.done = self.done.saturating_add(bytes as u64);
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            self.due = Some(now + EVERY);
            self.shown = true;
            let (done, total) = (self.done / MIB, self.total / MIB);
            let percent = self.done.saturating_mul(100).checked_div(self.total);
            let of = percent.map(|percent| format!(" of {total} MiB, {percent} %"));
            let (what, of) = (self.what, of.unwrap_or_else(|| " MiB".to_owned()));
            // Nobody is told if this fails: the result does not depend on it.
            let _ = write!(io::stderr(), "\r\x1b[K{what}: {done}{of}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(room)?;
        self.progress.on(read);
        Ok(read)
    }
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.progress.on(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
