//! How checks see the host: its files, its users and other programs' answers.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bounded_file::read_bounded;
use nix::unistd::{Group, User, geteuid};

/// Files of the kernel and configurations are far shorter; an event log can have some MiB.
const MAX_FILE: usize = 32 * 1024 * 1024;

/// A host.
#[derive(Debug)]
pub struct System {
    root: PathBuf,
}

/// Something that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen<T> {
    There(T),
    Absent,
    /// Why it could not be seen.
    Not(String),
}

impl System {
    /// This host.
    pub fn this() -> Self {
        Self::in_folder("/")
    }

    /// A host whose files are in this folder, its users among them (`etc/passwd`, `etc/group`). What its
    /// programs answer is in `answers/`, in a file of the program's name.
    pub fn in_folder(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a file of the host is.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Seen<Vec<u8>> {
        read_bounded(&self.path(path), MAX_FILE).into()
    }

    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Seen<String> {
        match self.read(path) {
            Seen::There(bytes) => Seen::There(String::from_utf8_lossy(&bytes).into_owned()),
            Seen::Absent => Seen::Absent,
            Seen::Not(why) => Seen::Not(why),
        }
    }

    /// Follows links.
    pub(crate) fn metadata(&self, path: impl AsRef<Path>) -> Seen<Metadata> {
        fs::metadata(self.path(path)).into()
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        matches!(self.metadata(path), Seen::There(_))
    }

    /// The names in a folder, sorted.
    pub(crate) fn names(&self, folder: impl AsRef<Path>) -> Seen<Vec<String>> {
        let names = fs::read_dir(self.path(folder)).map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            let mut names: Vec<String> = names
                .map(|name| name.to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        });
        names.into()
    }

    /// What a program of the host writes, if it ends well.
    pub(crate) fn answer_of(&self, program: &str, arguments: &[&str]) -> Option<String> {
        if self.is_this() {
            return Self::answer_of_file(program.as_ref(), arguments);
        }
        match self.text(Path::new("answers").join(program)) {
            Seen::There(answer) => Some(answer.trim().to_owned()),
            _ => None,
        }
    }

    /// What the program in this file writes, if it ends well.
    pub(crate) fn answer_of_file(program: &Path, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }

    /// The number of a user, if there is one of this name.
    pub(crate) fn user(&self, name: &str) -> Option<u32> {
        match self.is_this() {
            true => (User::from_name(name).ok().flatten()).map(|user| user.uid.as_raw()),
            false => self.number_in("/etc/passwd", name),
        }
    }

    /// The number of a group, if there is one of this name.
    pub(crate) fn group(&self, name: &str) -> Option<u32> {
        match self.is_this() {
            true => (Group::from_name(name).ok().flatten()).map(|group| group.gid.as_raw()),
            false => self.number_in("/etc/group", name),
        }
    }

    /// Of a user or group in a file like passwd(5) or group(5), which both have it in the third place.
    fn number_in(&self, file: &str, name: &str) -> Option<u32> {
        let Seen::There(text) = self.text(file) else {
            return None;
        };
        let mut lines = text.lines().map(|line| line.split(':'));
        let mut line = lines.find(|line| line.clone().next() == Some(name))?;
        line.nth(2)?.parse().ok()
    }

    fn is_this(&self) -> bool {
        self.root == Path::new("/")
    }
}

/// Whether whoever looks is root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

impl<T> From<io::Result<T>> for Seen<T> {
    fn from(result: io::Result<T>) -> Self {
        match result {
            Ok(value) => Self::There(value),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Absent,
                _ => Self::Not(error.to_string()),
            },
        }
    }
}
