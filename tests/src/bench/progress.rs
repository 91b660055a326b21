//! How far a long part has come, on the terminal.

use std::time::{Duration, Instant};

/// Says now and then how many steps of how many are done.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    done: u32,
    of: u32,
    begin: Instant,
    said: Instant,
}

const PAUSE: Duration = Duration::from_secs(10);

impl Progress {
    /// Nothing is done yet.
    pub(super) fn of(what: &'static str, of: u32) -> Self {
        let begin = Instant::now();
        Self {
            what,
            done: 0,
            of,
            begin,
            said: begin,
        }
    }

    /// One step is done.
    pub(super) fn step(&mut self) {
        self.done += 1;
        if self.said.elapsed() >= PAUSE {
            self.said = Instant::now();
            println!(
                "   {} of {} {} ({} s)",
                self.done,
                self.of,
                self.what,
                self.begin.elapsed().as_secs()
            );
        }
    }
}
