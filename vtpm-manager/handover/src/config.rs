//! Which way a program goes that is taken for swtpm: one file of the host, which no caller knows of.

use std::io;
use std::path::{Path, PathBuf};

use bounded_file::read_bounded_text;
use serde::Deserialize;

use crate::error::HandoverError;

/// Where it lies.
const DEFAULT_CONFIG: &str = "/etc/vtpm-manager/swtpm.toml";
/// Names another one in the environment, for trials.
const CONFIG: &str = "VROT_SWTPM_CONFIG";
const DEFAULT_SOCKET: &str = "/run/vtpm-manager/swtpm.sock";
const MAX_CONFIG: usize = 64 * 1024;

/// How such a program serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As swtpm does: the state lies in the caller's folder.
    Plain,
    /// By the manager, whose socket this is: the state is sealed to this host's TPM.
    Anchored(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mode: ModeName,
    socket: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeName {
    Plain,
    Anchored,
}

impl Mode {
    /// What this host has.
    pub fn of_this_host() -> Result<Self, HandoverError> {
        match std::env::var_os(CONFIG) {
            Some(path) => Self::configured(Path::new(&path)),
            None => Self::configured(Path::new(DEFAULT_CONFIG)),
        }
    }

    /// What this file says; plain, where there is none. One that cannot be read is an error: a VM
    /// that is to have an anchored TPM must not get another one.
    pub fn configured(path: &Path) -> Result<Self, HandoverError> {
        let problem = |problem: String| HandoverError::Config {
            path: path.to_owned(),
            problem,
        };
        let text = match read_bounded_text(path, MAX_CONFIG) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Plain),
            Err(error) => {
                let says = "every user whose programs are taken for swtpm must be able to read it";
                return Err(problem(format!("it cannot be read ({error}): {says}")));
            }
        };
        let file: File = toml::from_str(&text).map_err(|error| {
            problem(format!(
                "{}: write `mode = \"anchored\"` or `mode = \"plain\"`, and `socket` if the \
                 manager's runtime folder is not /run/vtpm-manager",
                error.message()
            ))
        })?;
        let socket = file.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
        if !socket.is_absolute() {
            let shown = socket.display();
            return Err(problem(format!(
                "`socket` is `{shown}`: write an absolute path"
            )));
        }
        Ok(match file.mode {
            ModeName::Plain => Self::Plain,
            ModeName::Anchored => Self::Anchored(socket),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_it_is_plain_and_a_wrong_file_is_never_taken_for_that() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("swtpm.toml");
        assert_eq!(Mode::configured(&path)?, Mode::Plain);
        for (text, expected) in [
            ("mode = \"plain\"", Mode::Plain),
            ("mode = \"anchored\"", Mode::Anchored(DEFAULT_SOCKET.into())),
            (
                "mode = \"anchored\"\nsocket = \"/run/other\"",
                Mode::Anchored("/run/other".into()),
            ),
        ] {
            std::fs::write(&path, text)?;
            assert_eq!(Mode::configured(&path)?, expected);
        }
        for text in [
            "",
            "mode = \"achored\"",
            "mode = \"anchored\"\nsockt = \"/run/x\"",
            "mode = \"anchored\"\nsocket = \"run/x\"",
        ] {
            std::fs::write(&path, text)?;
            let refused = Mode::configured(&path).err();
            let refused = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains("swtpm.toml"), "{text}: {refused}");
        }
        Ok(())
    }
}
