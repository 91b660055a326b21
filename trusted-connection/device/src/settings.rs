//! The settings of `vrot-device`, from a file in TOML: what would have to be said at each call without them.
//!
//! Files that it names are relative to its own folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attestation::TomlError;
use bounded_file::read_bounded_text;
use serde::Deserialize;
use trusted_connection::settings_file;

use crate::authority_url::AuthorityUrl;

/// What commands fall back on where an option is not given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Where they are, or where they are looked for last.
    file: PathBuf,
    entries: Entries,
}

/// Each has the name of an option.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    policy: Option<PathBuf>,
    #[serde(default)]
    crls: Vec<PathBuf>,
    authority: Option<AuthorityUrl>,
    #[serde(default)]
    authority_roots: Vec<PathBuf>,
    web_roots: Option<PathBuf>,
}

const NAME: &str = "device.toml";
/// Names of a few files, and no more.
const MAX_SETTINGS: usize = 64 * 1024;
/// Where Debian keeps the roots of the web.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Settings {
    /// Reads the file that was given, or the first that there is. Without any, nothing is set.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let file = match settings_file::find(given, NAME) {
            Ok(file) => file,
            Err(places) => {
                let file = places.into_iter().next_back().unwrap_or_default();
                let entries = Entries::default();
                return Ok(Self { file, entries });
            }
        };
        let read = read_bounded_text(&file, MAX_SETTINGS);
        let text = read.with_context(|| format!("{} cannot be read", file.display()))?;
        let mut entries: Entries = toml::from_str(&text)
            .map_err(|error| TomlError::of(&error, &text))
            .with_context(|| format!("{} cannot be used", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let named = (entries.policy.iter_mut())
            .chain(&mut entries.crls)
            .chain(&mut entries.authority_roots)
            .chain(&mut entries.web_roots);
        for path in named {
            *path = folder.join(&path);
        }
        Ok(Self { file, entries })
    }

    /// The policy that was given, or that of the settings.
    pub(crate) fn policy<'a>(&'a self, given: Option<&'a Path>) -> Result<&'a Path> {
        given
            .or(self.entries.policy.as_deref())
            .with_context(|| self.missing("policy", "--policy"))
    }

    /// Revocation lists, which count beside those that were given.
    pub(crate) fn crls(&self) -> &[PathBuf] {
        &self.entries.crls
    }

    /// The time-stamp authority that was given, or that of the settings.
    pub(crate) fn authority<'a>(
        &'a self,
        given: Option<&'a AuthorityUrl>,
    ) -> Result<&'a AuthorityUrl> {
        given
            .or(self.entries.authority.as_ref())
            .with_context(|| self.missing("authority", "--authority (or --requests)"))
    }

    /// The roots of time-stamp authorities that were given, or those of the settings.
    pub(crate) fn authority_roots<'a>(&'a self, given: &'a [PathBuf]) -> Result<&'a [PathBuf]> {
        [given, &self.entries.authority_roots]
            .into_iter()
            .find(|roots| !roots.is_empty())
            .with_context(|| self.missing("authority_roots", "--authority-root"))
    }

    /// The roots of web servers that were given, or those of the settings, or else the system's.
    pub(crate) fn web_roots<'a>(&'a self, given: Option<&'a Path>) -> &'a Path {
        given
            .or(self.entries.web_roots.as_deref())
            .unwrap_or(Path::new(SYSTEM_ROOTS))
    }

    fn missing(&self, entry: &str, option: &str) -> String {
        let file = self.file.display();
        format!("give {option}, or write `{entry}` into the settings ({file})")
    }
}
