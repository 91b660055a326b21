//! The backend's log goes to the manager, as far as that takes it at once.

use std::time::Instant;

use backend_link::frame;
use program_output::log::{self, Line, Passed};

use super::ManagerLink;
use backend_link::message::{FromBackend, LogLevel};

impl ManagerLink {
    /// Whether there is a manager that the log can be told to. One that dials in hears first how
    /// it stands.
    pub fn takes_log(&self) -> bool {
        self.greeted && self.connection.is_some()
    }

    /// Tells the manager what there is to say. Nothing waits for that: what it does not take now
    /// stays, and when there is too much of it, it is lost and counted.
    pub fn pass_log_on(&mut self) {
        if self.takes_log() {
            log::pass_on(&mut |line| self.pass(line));
        }
    }

    fn pass(&mut self, line: &Line) -> Passed {
        let Some(connection) = &mut self.connection else {
            return Passed::Later;
        };
        // A socket that is writable has room for more than the longest line (Linux: three
        // quarters of its buffer).
        if !connection.is_writable() {
            return Passed::Later;
        }
        let message = FromBackend::Log {
            level: level_of(line.level),
            says: line.text.clone(),
        };
        let Ok(frame) = frame::encode(&message) else {
            return Passed::Lost;
        };
        if connection.write_until(&frame, Instant::now()).is_err() {
            // Perhaps a part was written, and what follows would be taken for the rest.
            self.lose();
            return Passed::Later;
        }
        Passed::Done
    }
}

fn level_of(level: tracing::Level) -> LogLevel {
    match level {
        tracing::Level::ERROR => LogLevel::Error,
        tracing::Level::WARN => LogLevel::Warn,
        tracing::Level::INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    }
}
