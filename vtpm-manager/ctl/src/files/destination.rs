//! Files that commands write where a user says: whole or not there, and in place of nothing but an earlier
//! one of their kind.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bounded_file::read_bounded;
use cert_chain::enrolment::{MAX_MESSAGE, Message};
use cert_chain::pem;
use durable_file::{Existing, OutputError, OutputFile};

use crate::error::CtlError;

/// Where a file is going to be written. It is opened before a command does what cannot be done twice.
#[derive(Debug)]
pub(crate) struct Destination {
    /// As the user named it.
    named: PathBuf,
    kind: Kind,
    to: To,
}

#[derive(Debug)]
enum To {
    File {
        path: PathBuf,
        file: OutputFile,
    },
    /// A device or a pipe, such as `/dev/stdout`.
    Stream(File),
}

/// What a file holds, as far as it matters to whoever writes another one in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, or blanks.
    Nothing,
    /// PEM, with its blocks' labels, each once.
    Pem(String),
    /// JSON, with its `type`, if it states one.
    Json(String),
    Text,
    Binary,
    /// More than is looked at, whatever it is.
    Long,
}

/// So much of what is there is looked at: the longest revocation list has less.
const MAX_FILE: usize = cert_chain::crl::MAX_CRL_FILE;
/// Who may read a new file: all that the user's umask leaves.
const MODE: u32 = 0o666;
/// The same of a secret.
const OWNER: u32 = 0o600;
const PERMISSIONS: u32 = 0o777;

/// Writes a file, in place of an earlier one of its kind.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    Destination::open(path, Kind::of(contents))?.write(contents)
}

/// The same with a secret, for the user alone. What is no file is refused, and links are not followed:
/// whoever laid one there would get the secret.
pub(crate) fn write_for_owner(path: &Path, contents: &[u8]) -> Result<(), CtlError> {
    let file = OutputFile::create(path, OWNER, Existing::Replace)?;
    let place = Destination {
        named: path.to_owned(),
        kind: Kind::of(contents),
        to: To::File {
            path: path.to_owned(),
            file,
        },
    };
    place.write(contents)
}

impl Destination {
    /// A place for what is of this kind.
    ///
    /// A file in place of another has that one's mode.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self, CtlError> {
        let failed = |source| failed(path, source);
        let (target, mode) = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            Ok(found) if !found.is_file() => {
                let stream = OpenOptions::new().write(true).open(path);
                return Ok(Self {
                    named: path.to_owned(),
                    kind,
                    to: To::Stream(stream.map_err(failed)?),
                });
            }
            // What a link leads to is replaced, and not the link.
            Ok(found) => (
                fs::canonicalize(path).map_err(failed)?,
                found.permissions().mode() & PERMISSIONS,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), MODE),
            Err(error) => return Err(failed(error)),
        };
        let file = OutputFile::create(&target, mode, Existing::Replace);
        let place = Self {
            named: path.to_owned(),
            kind,
            to: To::File {
                path: target,
                file: file?,
            },
        };
        place.check()?;
        Ok(place)
    }

    /// The same for a message that is made once and not again: the disk keeps room for it.
    pub(crate) fn for_message<M: Message>(path: &Path) -> Result<Self, CtlError> {
        let place = Self::open(path, Kind::json(M::TYPE))?;
        let To::File { file, .. } = &place.to else {
            // Nobody knows whether it will take the message.
            return Err(OutputError::NoFile(path.to_owned()).into());
        };
        file.reserve(u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX))?;
        Ok(place)
    }

    /// Writes the whole file.
    pub(crate) fn write(self, contents: &[u8]) -> Result<(), CtlError> {
        // Another file may have come meanwhile, by this command itself.
        self.check()?;
        let named = self.named;
        let failed = |source| failed(&named, source);
        match self.to {
            To::Stream(mut stream) => stream.write_all(contents).map_err(failed),
            To::File { mut file, .. } => {
                file.write_all(contents).map_err(failed)?;
                Ok(file.finish()?)
            }
        }
    }

    /// Whether what is there may be replaced.
    fn check(&self) -> Result<(), CtlError> {
        let To::File { path, .. } = &self.to else {
            return Ok(());
        };
        let found = match read_bounded(path, MAX_FILE) {
            Ok(contents) => Kind::of(&contents),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::Nothing,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Kind::Long,
            Err(error) => return Err(failed(&self.named, error)),
        };
        if found == Kind::Nothing || found == self.kind {
            return Ok(());
        }
        Err(CtlError::Occupied {
            path: self.named.clone(),
            found: found.to_string(),
            wanted: self.kind.to_string(),
        })
    }
}

impl Kind {
    fn json(kind: &str) -> Self {
        Self::Json(kind.to_owned())
    }

    /// PEM with this label.
    pub(crate) fn pem(label: &str) -> Self {
        Self::Pem(label.to_owned())
    }

    fn of(contents: &[u8]) -> Self {
        if contents.trim_ascii().is_empty() {
            return Self::Nothing;
        }
        if let Ok(blocks) = pem::blocks(contents)
            && !blocks.is_empty()
        {
            let mut labels: Vec<_> = blocks.into_iter().map(|block| block.label).collect();
            labels.sort_unstable();
            labels.dedup();
            return Self::pem(&labels.join(" and a "));
        }
        if let Ok(json) = serde_json::from_slice::<serde_json::Value>(contents)
            && let Some(object) = json.as_object()
        {
            let kind = object.get("type").and_then(|kind| kind.as_str());
            return Self::json(kind.unwrap_or_default());
        }
        match str::from_utf8(contents) {
            Ok(_) => Self::Text,
            Err(_) => Self::Binary,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Pem(label) => write!(f, "a {label}"),
            Self::Json(kind) if kind.is_empty() => f.write_str("JSON without a type"),
            Self::Json(kind) => write!(f, "a `{kind}`"),
            Self::Text => f.write_str("another text"),
            Self::Binary => f.write_str("binary data"),
            Self::Long => write!(f, "more than {MAX_FILE} bytes"),
        }
    }
}

fn failed(path: &Path, source: io::Error) -> CtlError {
    CtlError::File {
        path: path.to_owned(),
        action: "written",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;

    use anyhow::Result;

    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_file_takes_the_place_of_nothing_but_an_earlier_one_of_its_kind() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link)?;
        let kinds = [
            KEY,
            CERTIFICATE,
            r#"{"type":"host-enrolment-request"}"#,
            r#"{"type":"host-enrolment-answer"}"#,
            r#"{"0":"ff"}"#,
            "notes",
        ];
        for there in kinds {
            fs::write(&path, there)?;
            for new in kinds.into_iter().filter(|new| *new != there) {
                for named in [&path, &link] {
                    let refused = write(named, new.as_bytes()).err();
                    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
                    assert!(
                        refused.contains("name another file"),
                        "{there} {new} {refused}"
                    );
                    assert_eq!(fs::read_to_string(&path)?, there);
                }
            }
            write(&link, there.as_bytes())?;
        }
        // A long list is a list.
        let list = CERTIFICATE.replace("CERTIFICATE", "X509 CRL");
        let list = list.replace("AAAA\n", &"AAAA\n".repeat(270_000));
        fs::write(&path, &list)?;
        write(&path, list.as_bytes())?;
        fs::write(&path, " \n")?;
        write(&link, CERTIFICATE.as_bytes())?;
        assert_eq!(fs::read_to_string(&path)?, CERTIFICATE);
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        // A key behind a certificate, and what is too long to be looked at.
        let both = [CERTIFICATE, KEY].concat();
        let long = "x".repeat(MAX_FILE + 1);
        for (there, new) in [(both.as_str(), CERTIFICATE), (&long, "notes")] {
            fs::write(&path, there)?;
            assert!(write(&path, new.as_bytes()).is_err());
            assert!(fs::read_to_string(&path)? == there);
        }
        fs::write(&path, CERTIFICATE)?;
        // A key that came after the place was looked at.
        let place = Destination::open(&path, Kind::pem("CERTIFICATE"))?;
        fs::write(&path, KEY)?;
        assert!(place.write(CERTIFICATE.as_bytes()).is_err());
        assert_eq!(fs::read_to_string(&path)?, KEY);
        Ok(())
    }

    #[test]
    fn devices_stay_devices_and_nothing_else_in_the_folder_is_touched() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe)
        });
        write(&pipe, CERTIFICATE.as_bytes())?;
        assert_eq!(
            reader.join().ok().transpose()?.as_deref(),
            Some(CERTIFICATE)
        );
        assert!(!fs::metadata(&pipe)?.is_file());
        write(Path::new("/dev/null"), CERTIFICATE.as_bytes())?;
        assert!(write(Path::new("/dev/full"), CERTIFICATE.as_bytes()).is_err());

        let beside = folder.path().join("list.new");
        fs::write(&beside, "mine")?;
        write(&folder.path().join("list.pem"), CERTIFICATE.as_bytes())?;
        assert_eq!(fs::read_to_string(&beside)?, "mine");
        assert!(write(folder.path(), b"x").is_err());
        assert!(write(&folder.path().join("missing/file"), b"x").is_err());
        Ok(())
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_secret_is_for_its_owner() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let mode = || fs::metadata(&path).map(|found| found.permissions().mode() & 0o777);
        write_for_owner(&path, b"token")?;
        assert_eq!(mode()?, 0o600);
        write(&path, b"text")?;
        assert_eq!(mode()?, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        write_for_owner(&path, b"token")?;
        assert_eq!(mode()?, 0o600);
        Ok(())
    }

    #[test]
    fn a_secret_goes_to_no_pipe_or_device_and_over_no_link() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&pipe)?;
        let target = folder.path().join("target");
        fs::write(&target, "mine")?;
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link)?;
        for named in [pipe.as_path(), link.as_path(), Path::new("/dev/null")] {
            let refused = write_for_owner(named, b"token").err();
            let refused = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains("no regular file"), "{named:?} {refused}");
        }
        // Nobody wrote: the pipe has an end and no bytes.
        assert_eq!(reader.read(&mut [0])?, 0);
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        assert_eq!(fs::read_to_string(&target)?, "mine");
        assert!(!fs::symlink_metadata("/dev/null")?.is_file());
        Ok(())
    }
}
