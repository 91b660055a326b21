//! Makes lines of what the program says, and has them wait to be written.

use std::io;
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::Format;
use super::line::{Line, NOTICE, on_one_line};
use super::queue::Queue;

#[derive(Clone, Debug)]
pub(super) struct Lines {
    queue: Arc<Queue>,
    format: Format,
}

/// Takes one line, in one piece.
pub(super) struct LineWriter<'l> {
    lines: &'l Lines,
    level: Level,
    is_notice: bool,
}

impl Lines {
    pub(super) fn to(queue: Arc<Queue>, format: Format) -> Self {
        Self { queue, format }
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = LineWriter<'l>;

    fn make_writer(&'l self) -> Self::Writer {
        LineWriter {
            lines: self,
            level: Level::INFO,
            is_notice: false,
        }
    }

    fn make_writer_for(&'l self, metadata: &Metadata<'_>) -> Self::Writer {
        LineWriter {
            lines: self,
            level: *metadata.level(),
            is_notice: metadata.target() == NOTICE,
        }
    }
}

impl io::Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let said = String::from_utf8_lossy(bytes);
        self.lines.queue.push(Line {
            level: self.level,
            text: on_one_line(self.level, &said, self.lines.format),
            is_notice: self.is_notice,
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
