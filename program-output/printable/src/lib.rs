//! Text from elsewhere, made safe to show on a terminal; and errors with their causes, on one line.
//!
//! Certificates, requests, event logs, files and answers of peers can hold characters that a
//! terminal obeys instead of showing (ECMA-48 control sequences), that reorder what is read
//! (Unicode Standard Annex #9) or that have no width. With them a text can forge lines of our
//! output or hide parts of it. Each program escapes them where it writes: `\u{1b}` for people, the
//! same value as `\u001b` in JSON.

mod causes;

use std::fmt::{self, Write};

pub use causes::WithCauses;

/// Shows a text on one line: every character that is not printable, line ends among them, is
/// written as `\u{…}` with its code point in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write_char(f, c))
    }
}

/// Text of several lines that a program of ours put together: its line ends stay. A part that comes
/// from elsewhere goes through [`Printable`] before, or it could forge a line.
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' {
            shown.push(c);
        } else {
            // Writing to a `String` cannot fail.
            let _ = write_char(&mut shown, c);
        }
    }
    shown
}

/// JSON text with every character escaped that is not printable. All of them stand within strings,
/// since JSON has none outside but white space, so the values stay the same (RFC 8259 §7).
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_printable(c) {
            shown.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
    }
    shown
}

/// Whether a character can be seen and does not change how others are shown.
///
/// What [`char::escape_debug`] leaves as it is, is neither a control, format or unassigned
/// character, nor a separator, nor a mark that extends the character before it. A few letters
/// without an ink of their own come on top (`Default_Ignorable_Code_Point`, and the blank Braille
/// pattern).
pub fn is_printable(c: char) -> bool {
    const BLANK: [char; 5] = ['\u{115f}', '\u{1160}', '\u{2800}', '\u{3164}', '\u{ffa0}'];
    matches!(c, '\'' | '"' | '\\') || (c.escape_debug().len() == 1 && !BLANK.contains(&c))
}

fn write_char(to: &mut impl Write, c: char) -> fmt::Result {
    if is_printable(c) {
        to.write_char(c)
    } else {
        write!(to, "{}", c.escape_unicode())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// One of each kind: C0, DEL, C1, line and paragraph separators, bidirectional controls, marks
    /// without width, blanks, tags, a combining mark, private use.
    const HIDDEN: &str = "\u{0}\u{7}\u{1b}\r\u{7f}\u{9b}\u{85}\u{2028}\u{2029}\u{202e}\u{2066}\u{61c}\
        \u{200b}\u{200d}\u{200f}\u{feff}\u{ad}\u{2060}\u{180e}\u{fe0f}\u{3164}\u{115f}\u{2800}\
        \u{a0}\u{e0041}\u{e0100}\u{301}\u{e000}";

    #[test]
    fn what_cannot_be_seen_is_escaped_for_people_and_in_json() {
        for c in HIDDEN.chars() {
            let text = format!("a{c}b");
            let escaped = format!("a{}b", c.escape_unicode());
            assert_eq!(Printable(&text).to_string(), escaped);
            assert_eq!(printable_lines(&text), escaped);
            let json = printable_json(&serde_json::to_string(&text).unwrap());
            assert!(json.is_ascii(), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn what_can_be_seen_stays_as_it_is() {
        let text = "Zürich, 東京, it's \"quoted\" \\ ✓ └─│";
        assert_eq!(Printable(text).to_string(), text);
        assert_eq!(printable_json(text), text);
        assert_eq!(printable_lines("two\nlines"), "two\nlines");
        assert_eq!(Printable("two\nlines").to_string(), "two\\u{a}lines");
    }
}
