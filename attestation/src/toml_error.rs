//! What is wrong with a TOML file, on one line.

use std::fmt;

/// Where a text stops being the TOML that is needed, and why.
///
/// The library's own error shows the line of the file below its message. Ours are written on one
/// line, so that no file decides where a line of our output begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TomlError {
    /// Line and column, counted from 1; missing where the fault is that something is missing.
    position: Option<(usize, usize)>,
    message: String,
}

impl TomlError {
    /// Takes over what the library says about `text`.
    pub fn of(error: &toml::de::Error, text: &str) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        Self {
            position: before.map(|before| {
                let line = before.split('\n').next_back().unwrap_or_default();
                (before.matches('\n').count() + 1, line.chars().count() + 1)
            }),
            message: error.message().to_owned(),
        }
    }
}

impl fmt::Display for TomlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for TomlError {}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn line_and_column_are_told() {
        let text = "a = 1\nb = [1, \"ü\", @]\n";
        let error = toml::from_str::<toml::Table>(text).unwrap_err();
        let error = TomlError::of(&error, text).to_string();
        assert!(error.starts_with("line 2, column 14: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
