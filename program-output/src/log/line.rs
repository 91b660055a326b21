//! A line: bounded, on one line, and without anything that a terminal would obey.

use printable::printable_json;
use tracing::Level;

use super::Format;

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
/// Lines under this target tell what became of a peer's connection that was accepted: there may be many,
/// for whoever was not accepted cannot cause them.
pub const ACCEPTED: &str = "accepted";
/// Lines that tell of missing lines.
pub(super) const NOTICE: &str = "log";

/// A pipe takes so much as a whole or not at all (`PIPE_BUF`); a byte of it is the line's end.
const LONGEST: usize = 4095;

/// The text of a line. What is too long is cut.
pub(super) fn on_one_line(level: Level, said: &str, format: Format) -> String {
    let text = printable_json(&said.trim_end_matches('\n').replace('\n', "\\n"));
    if text.len() <= LONGEST {
        return text;
    }
    match format {
        Format::Text | Format::Bare => shortened(&text, LONGEST),
        Format::Json => json_of_its_beginning(level, &text),
    }
}

/// The beginning, and how much there was.
fn shortened(text: &str, longest: usize) -> String {
    let rest = format!("… ({} bytes in all)", text.len());
    let kept = longest.saturating_sub(rest.len());
    let (beginning, _) = text.split_at(text.floor_char_boundary(kept));
    format!("{beginning}{rest}")
}

/// An object that is cut is no JSON, so the beginning of a long one becomes a text in another
/// object. Escaping makes it twice as long at most.
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
    use super::*;

    fn written(format: Format, text: &str) -> String {
        on_one_line(Level::INFO, text, format)
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
