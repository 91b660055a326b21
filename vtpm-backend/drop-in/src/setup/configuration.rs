//! `swtpm_setup.conf`: lines of `name = value`, and comments that begin with `#`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bounded_file::read_bounded_text;

use super::user_folder;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Configuration(BTreeMap<String, String>);

/// The file's name.
pub(super) const NAME: &str = "swtpm_setup.conf";
const OF_ALL: &str = "/etc/swtpm_setup.conf";
const MOST: usize = 64 * 1024;

impl Configuration {
    /// Reads this file, or else the user's own, or else that of all users.
    pub(super) fn read(path: Option<&Path>) -> Result<Self> {
        let own = || user_folder().ok().map(|folder| folder.join(NAME));
        let path = match path {
            Some(path) => path.to_owned(),
            None => own()
                .filter(|path| path.exists())
                .unwrap_or_else(|| PathBuf::from(OF_ALL)),
        };
        let text = read_bounded_text(&path, MOST);
        let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim);
        let pairs = lines
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='));
        Self(
            pairs
                .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }

    /// What it says of this, if anything. A path may begin with a variable (`${HOME}/x`, `$HOME/x`,
    /// `~/x`).
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let value = self.0.get(name).filter(|value| !value.is_empty())?;
        Some(with_variable(value))
    }
}

fn with_variable(value: &str) -> String {
    let (name, rest) = if let Some(rest) = value.strip_prefix("~/") {
        ("HOME", format!("/{rest}"))
    } else if let Some((name, rest)) = value.strip_prefix("${").and_then(|v| v.split_once('}')) {
        (name, rest.to_owned())
    } else if let Some((name, rest)) = value.strip_prefix('$').and_then(|v| v.split_once('/')) {
        (name, format!("/{rest}"))
    } else {
        return value.to_owned();
    };
    match std::env::var(name) {
        Ok(before) => format!("{before}{rest}"),
        Err(_) => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_lines_without_comments_and_may_begin_with_a_variable() {
        let file = "# tool = a\n tool= /usr/bin/x \nempty =\nnonsense\nhome = ${HOME}/y\nx = ~/y\n";
        let read = Configuration::parse(file);
        assert_eq!(read.get("tool").as_deref(), Some("/usr/bin/x"));
        assert_eq!(read.get("empty"), None);
        assert_eq!(read.get("nonsense"), None);
        assert_eq!(read.get("home"), read.get("x"));
    }
}
