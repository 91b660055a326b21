//! What is wrong with a TOML file, on one line.

use std::fmt;

use strsim::osa_distance;

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
            message: with_what_is_meant(error.message()),
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

/// Beside an entry that there is not stand all that there are: the one that is most like it is named, too.
fn with_what_is_meant(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(unknown) = names
        .next()
        .filter(|_| message.starts_with("unknown field "))
    else {
        return message.to_owned();
    };
    let nearest = names.min_by_key(|known| osa_distance(unknown, known));
    match nearest {
        Some(known) if osa_distance(unknown, known) <= known.len().div_ceil(3) => {
            format!("{message}: `{known}` may be meant")
        }
        _ => message.to_owned(),
    }
}

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

    #[test]
    fn an_entry_that_there_is_not_is_told_with_the_one_that_may_be_meant() {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only names count")]
        struct Entries {
            hosts: Option<String>,
            max_crl_age: Option<u64>,
        }
        for (text, meant) in [
            ("host = 1", Some("hosts")),
            ("max-crl-age = 1", Some("max_crl_age")),
            ("colour = 1", None),
        ] {
            let error = toml::from_str::<Entries>(text).map(|_| ()).unwrap_err();
            let error = TomlError::of(&error, text).to_string();
            let told = meant.map(|meant| format!("`{meant}` may be meant"));
            assert!(
                error.contains("expected `hosts` or `max_crl_age`"),
                "{error}"
            );
            assert_eq!(told.is_some(), error.contains("meant"), "{error}");
            assert!(error.ends_with(&told.unwrap_or_default()), "{error}");
        }
    }
}
