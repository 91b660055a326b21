//! A line: bounded, on one line, and without anything that a terminal would obey.

use std::io;
use std::sync::Arc;

use printable::printable_json;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::Format;
use super::queue::Queue;

/// One line of a log, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How bad it is.
    pub level: Level,
    /// What it says.
    pub text: String,
    /// Whether it tells of lines that are missing.
    pub(super) is_notice: bool,
}

/// Lines under this target come from somewhere else, and are limited whatever their level is.
pub const FOREIGN: &str = "backend";
/// Lines that tell of missing lines.
pub(super) const NOTICE: &str = "log";

/// A pipe takes so much as a whole or not at all (`PIPE_BUF`); a byte of it is the line's end.
const LONGEST: usize = 4095;

/// Makes lines of what the program says.
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
        let mut text = printable_json(&said.trim_end_matches('\n').replace('\n', "\\n"));
        if text.len() > LONGEST {
            text = match self.lines.format {
                Format::Text | Format::Bare => shortened(&text, LONGEST),
                Format::Json => json_of_its_beginning(self.level, &text),
            };
        }
        self.lines.queue.push(Line {
            level: self.level,
            text,
            is_notice: self.is_notice,
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The beginning, and how much there was.
fn shortened(text: &str, longest: usize) -> String {
    let rest = format!("… ({} bytes in all)", text.len());
    let kept = longest.saturating_sub(rest.len());
    let (beginning, _) = text.split_at(text.floor_char_boundary(kept));
    format!("{beginning}{rest}")
}

/// Half an object is none: what is too long becomes a text in another one. The beginning of
/// escaped text grows to at most double its length.
fn json_of_its_beginning(level: Level, text: &str) -> String {
    let beginning = shortened(text, LONGEST / 3);
    let escaped = beginning.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "{{\"level\":\"{level}\",\"fields\":{{\"message\":\"a line that is too long\",\
         \"beginning\":\"{escaped}\"}},\"target\":\"{NOTICE}\"}}"
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::queue::{Bounds, Passed};
    use super::*;

    fn written(format: Format, text: &str) -> String {
        let queue = Arc::new(Queue::bounded(Bounds {
            lines: 9,
            bytes: 99_999,
        }));
        let lines = Lines::to(Arc::clone(&queue), format);
        let mut writer = lines.make_writer();
        assert!(writer.write_all(text.as_bytes()).is_ok());
        let mut lines = Vec::new();
        queue.pass_on(&mut |line| {
            lines.push(line.text.clone());
            Passed::Done
        });
        assert_eq!(lines.len(), 1);
        lines.concat()
    }

    #[test]
    fn what_is_said_stays_on_its_line_and_commands_no_terminal() {
        let said = "INFO said=a\nERROR forged\r \u{1b}[2J \u{202e}dlo\u{200b}w \u{9b}1m ü\n";
        assert_eq!(
            written(Format::Text, said),
            r"INFO said=a\nERROR forged\u000d \u001b[2J \u202edlo\u200bw \u009b1m ü"
        );
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        let text = written(Format::Text, &"ü".repeat(100_000));
        assert!(text.len() <= LONGEST, "{}", text.len());
        assert!(text.ends_with("… (200000 bytes in all)"), "{text}");
        let json = written(Format::Json, &"\"\\".repeat(50_000));
        assert!(json.len() <= LONGEST, "{}", json.len());
        assert!(
            json.ends_with("bytes in all)\"},\"target\":\"log\"}"),
            "{json}"
        );
    }
}
