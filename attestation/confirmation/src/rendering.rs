//! A text as a terminal shows it: the lines, for one size.
//!
//! Device and verifier use the same code, so what is signed can be computed anew from text and size.

use crate::text::ConfirmableText;

/// The size of a terminal, within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    columns: u16,
    rows: u16,
}

/// A terminal that is too small, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a terminal of {columns} columns and {rows} rows: 40 to 500 columns and 12 to 200 rows are needed"
)]
pub struct SizeRefused {
    columns: u16,
    rows: u16,
}

/// The lines of a text on a terminal of a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendering {
    size: TerminalSize,
    lines: Vec<String>,
}

/// What stands left of each line of the text, so that no text can imitate what stands around it; and the last
/// column stays free, because terminals differ in what they do there.
const MARGIN: u16 = 3;
/// Rows for what stands above and below the text.
const AROUND: u16 = 7;

impl TerminalSize {
    /// A terminal that a text can be read on.
    pub fn new(columns: u16, rows: u16) -> Result<Self, SizeRefused> {
        match (40..=500).contains(&columns) && (12..=200).contains(&rows) {
            true => Ok(Self { columns, rows }),
            false => Err(SizeRefused { columns, rows }),
        }
    }

    /// Columns.
    pub fn columns(self) -> u16 {
        self.columns
    }

    /// Rows.
    pub fn rows(self) -> u16 {
        self.rows
    }
}

impl Rendering {
    /// Wraps a text at spaces, and words that are longer than a line at its end.
    pub fn of(text: &ConfirmableText, size: TerminalSize) -> Self {
        let width = usize::from(size.columns.saturating_sub(MARGIN));
        let mut lines = Vec::new();
        for line in text.as_str().split('\n') {
            wrap(line, width, &mut lines);
        }
        Self { size, lines }
    }

    /// The lines as shown, without what stands around them.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The terminal.
    pub fn size(&self) -> TerminalSize {
        self.size
    }

    /// The lines of each page.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = &[String]> {
        self.lines
            .chunks(usize::from(self.size.rows.saturating_sub(AROUND)).max(1))
    }
}

/// Each character has one column: [`ConfirmableText`] has no others.
fn wrap(line: &str, width: usize, to: &mut Vec<String>) {
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > width {
        let at_space = rest.iter().take(width + 1).rposition(|c| *c == ' ');
        // A line that would be empty, or blank, is none to break at.
        let cut = at_space.filter(|at| rest.iter().take(*at).any(|c| *c != ' '));
        let behind = rest.split_off(cut.unwrap_or(width));
        to.push(rest.into_iter().collect());
        rest = behind;
        if cut.is_some() {
            rest.remove(0);
        }
    }
    to.push(rest.into_iter().collect());
}
