//! Texts of a label.

use std::fmt;
use std::str::FromStr;

use printable::is_printable;
use serde::Serialize;

/// A name or a media type: 1 to [`MAX_LABEL_TEXT`] bytes of printable characters, so that it can be shown
/// anywhere and forges no line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct LabelText(String);

/// The most that a text has, in bytes of UTF-8.
pub const MAX_LABEL_TEXT: usize = 200;

/// Why something is no text of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a text of a label has 1 to {MAX_LABEL_TEXT} bytes, all of printable characters")]
pub struct NoLabelText;

impl LabelText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabelText {
    type Err = NoLabelText;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match !text.is_empty() && text.len() <= MAX_LABEL_TEXT && text.chars().all(is_printable) {
            true => Ok(Self(text.to_owned())),
            false => Err(NoLabelText),
        }
    }
}

impl fmt::Display for LabelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
