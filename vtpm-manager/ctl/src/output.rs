//! Results for people or for programs; progress for people.

use std::io::{self, IsTerminal, Write};

use printable::Printable;
use printable::{printable_json, printable_lines};
use program_output::console::print;
use serde::Serialize;

use crate::arguments::OutputFormat;
use crate::error::CtlError;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: OutputFormat,
}

/// Lines of cells; the widest cell of a column makes its width.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Output {
    pub(crate) fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    /// Whether results are for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Writes a result: as JSON, or as people read it.
    pub(crate) fn result(
        &self,
        value: &impl Serialize,
        people: impl FnOnce() -> String,
    ) -> Result<(), CtlError> {
        let text = match self.format {
            OutputFormat::Human => printable_lines(&people()),
            OutputFormat::Json => serde_json::to_string_pretty(value)
                .map(|json| printable_json(&json))
                .map_err(|error| CtlError::Output(error.into()))?,
        };
        print(&format!("{}\n", text.trim_end())).map_err(CtlError::Output)
    }

    /// Writes a text that another program reads, as it is; a terminal alone gets it as people read it.
    pub(crate) fn document(&self, value: &impl Serialize, text: &str) -> Result<(), CtlError> {
        if self.is_json() || io::stdout().is_terminal() {
            return self.result(value, || text.to_owned());
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        print(&format!("{text}{end}")).map_err(CtlError::Output)
    }

    /// Says what is being done, where that takes time.
    pub(crate) fn progress(&self, text: &str) {
        if self.format == OutputFormat::Human {
            let _ = writeln!(io::stderr(), "{} …", Printable(text));
        }
    }

    /// Asks; the answer is read by who asked.
    pub(crate) fn ask(&self, text: &str) {
        let _ = write!(io::stderr(), "{}: ", Printable(text));
    }

    /// Says what is to be done next.
    pub(crate) fn next(&self, text: &str) {
        let _ = writeln!(io::stderr(), "\n{}", printable_lines(text));
    }

    /// Says what the user ought to know.
    pub(crate) fn warn(&self, text: &str) {
        let _ = writeln!(io::stderr(), "note: {}", Printable(text));
    }
}

impl Table {
    /// Adds a line. What a cell holds stays on that line, whatever it is.
    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let shown = |cell: S| Printable(cell.as_ref()).to_string();
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// The lines, each column as wide as its widest cell.
    pub(crate) fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::default();
        table.row(["VM", "STATE", "NAME"]);
        table.row(["1234", "up", ""]);
        table.row(["ü", "stopped", "x"]);
        assert_eq!(
            table.render(),
            "VM    STATE    NAME\n1234  up\nü     stopped  x\n"
        );
    }

    #[test]
    fn a_cell_forges_no_line_and_moves_no_cursor() {
        let mut table = Table::default();
        table.row(["maker", "x\nstate  approved\u{1b}[1A\u{202e}"]);
        assert_eq!(
            table.render(),
            "maker  x\\u{a}state  approved\\u{1b}[1A\\u{202e}\n"
        );
    }
}
