//! How swtpm is told of a key: `file=PATH` or `fd=NUMBER` for a key, `pwdfile=PATH` or `pwdfd=NUMBER` for
//! a passphrase, and then how it is written and used, with commas between.

use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Key, KeyError, KeyForm, KeyFormat, KeySize, PassphraseKdf};

/// Where a key is, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOptions {
    /// Where it is.
    pub source: KeySource,
    /// What is there (`format=`, `kdf=`).
    pub form: KeyForm,
    /// How long it is (`mode=`).
    pub size: KeySize,
    /// Whether its file is to be removed once it was read (`remove`).
    pub remove: bool,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// Behind a descriptor that the process was given.
    Descriptor(i32),
}

/// Why a text does not say which key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyOptionsError {
    /// There is no such option, or it has no value that it can have.
    #[error(
        "{option:?} says nothing of a key: there are file=, fd=, pwdfile=, pwdfd=, mode=, format=, kdf= \
         and remove"
    )]
    Unknown {
        /// What was given.
        option: String,
    },
    /// No key, or more than one.
    #[error("give one of file=, fd=, pwdfile= and pwdfd=")]
    Source,
    /// A value that swtpm does not know.
    #[error(transparent)]
    Value(#[from] KeyError),
}

impl FromStr for KeyOptions {
    type Err = KeyOptionsError;

    fn from_str(text: &str) -> Result<Self, KeyOptionsError> {
        let (mut format, mut kdf, mut size) = Default::default();
        let mut remove = false;
        let mut sources = Vec::new();
        for option in text.split(',') {
            let unknown = || KeyOptionsError::Unknown {
                option: option.to_owned(),
            };
            let descriptor = |value: &str| {
                let number = value.parse().ok().filter(|number| *number >= 0);
                number.map(KeySource::Descriptor).ok_or_else(unknown)
            };
            match option.split_once('=').unwrap_or((option, "true")) {
                ("file", path) => sources.push((KeySource::File(path.into()), false)),
                ("fd", number) => sources.push((descriptor(number)?, false)),
                ("pwdfile", path) => sources.push((KeySource::File(path.into()), true)),
                ("pwdfd", number) => sources.push((descriptor(number)?, true)),
                ("mode", mode) => size = mode.parse()?,
                ("format", name) => format = name.parse::<KeyFormat>()?,
                ("kdf", name) => kdf = name.parse::<PassphraseKdf>()?,
                ("remove", "true" | "1") => remove = true,
                ("remove", "false" | "0") => remove = false,
                _ => return Err(unknown()),
            }
        }
        let mut sources = sources.into_iter();
        let (Some((source, is_passphrase)), None) = (sources.next(), sources.next()) else {
            return Err(KeyOptionsError::Source);
        };
        Ok(Self {
            source,
            form: match is_passphrase {
                true => KeyForm::Passphrase(kdf),
                false => KeyForm::Key(format),
            },
            size,
            remove,
        })
    }
}

impl KeyOptions {
    /// Reads the key from what its source was opened as.
    pub fn read(&self, source: impl Read) -> Result<Key, KeyError> {
        Key::read(source, self.form, self.size)
    }
}
