//! What a VM is launched with, as far as its launcher knows it.

use std::path::PathBuf;

use crate::error::CtlError;
use crate::measurement::OpenLaunch;

/// One part, by the name that evidence has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its name.
    pub(crate) name: String,
    /// Where its value comes from.
    pub(crate) source: Source,
}

/// Where the value of a part comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The contents of a file.
    File(PathBuf),
    /// A setting, which evidence has as it is.
    Value(String),
    /// A text, of which evidence has the digest.
    Text(String),
}

/// The parts of one launch, each named once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(Vec<Part>);

/// Longest setting that is told as it is.
const MAX_VALUE: usize = 64;

impl Parts {
    /// The contents of a file.
    pub(crate) fn file(&mut self, name: &str, path: impl Into<PathBuf>) {
        self.put(name, Source::File(path.into()));
    }

    /// A text of any length.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.put(name, Source::Text(text.to_owned()));
    }

    /// A setting; one that evidence cannot tell as it is counts as a text of that name.
    pub(crate) fn setting(&mut self, name: &str, value: &str) {
        let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if !value.is_empty() && value.len() <= MAX_VALUE && value.bytes().all(is_plain) {
            self.put(name, Source::Value(value.to_owned()));
        } else {
            self.text(&format!("text:{name}"), value);
        }
    }

    /// Leaves a part out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|part| part.name != name);
    }

    /// All of them.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Part> {
        self.0.iter()
    }

    /// Opens their files, for the manager to measure them; nothing, if nothing is named.
    pub(crate) fn open(&self) -> Result<Option<OpenLaunch>, CtlError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut launch = OpenLaunch::default();
        for part in &self.0 {
            match &part.source {
                Source::File(path) => launch.file(&part.name, path)?,
                Source::Value(value) => launch.value(&part.name, value),
                Source::Text(text) => launch.text(&part.name, text),
            }
        }
        Ok(Some(launch))
    }

    /// The last one of a name counts, as with QEMU.
    fn put(&mut self, name: &str, source: Source) {
        self.remove(name);
        self.0.push(Part {
            name: name.to_owned(),
            source,
        });
    }
}
