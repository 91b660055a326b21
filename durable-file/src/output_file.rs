//! Files that commands write: whole under their name, or not there.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::{folder_of, sync_folder_of};

/// A file that has its name once it is [finished](OutputFile::finish). Until then it is in the same folder
/// without a name, so that nothing is left of it however the program ends. Where the file system has no
/// files without names, and for the moment in which it takes another's place, it has a temporary one, which
/// goes when this is dropped, but not with a program that is killed.
#[derive(Debug)]
pub struct OutputFile {
    contents: Contents,
    path: PathBuf,
    existing: Existing,
}

/// What is written.
#[derive(Debug)]
enum Contents {
    Unnamed(File),
    Named(NamedTempFile),
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the new one is not made.
    Keep,
    /// The new one takes its place.
    Replace,
}

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// There is one.
    #[error("{} exists: nothing was written; --replace puts the new file in its place", .0.display())]
    Exists(PathBuf),
    /// A device, a pipe, a link.
    #[error(
        "{} is no regular file: name one, or a name that nothing has yet",
        .0.display()
    )]
    NoFile(PathBuf),
    /// The system refuses.
    #[error("{} cannot be written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Existing {
    /// What `--replace` of a command says.
    pub fn replaced_if(replace: bool) -> Self {
        match replace {
            true => Self::Replace,
            false => Self::Keep,
        }
    }
}

impl OutputFile {
    /// A file with this mode, cut by the umask.
    pub fn create(path: &Path, mode: u32, existing: Existing) -> Result<Self, OutputError> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => return Err(OutputError::NoFile(path.to_owned())),
            Ok(_) if existing == Existing::Keep => {
                return Err(OutputError::Exists(path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        let contents = Contents::create(path, mode).map_err(|source| at(path, source))?;
        Ok(Self {
            contents,
            path: path.to_owned(),
            existing,
        })
    }

    /// Has the file system keep room for so many bytes, where it can: what is written is not lost then because
    /// the disk is full.
    pub fn reserve(&self, bytes: u64) -> Result<(), OutputError> {
        let keep_length = FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.contents.file(), keep_length, 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(at(&self.path, error.into())),
        }
    }

    /// Writes the last of the contents, or all of them, and [finishes](Self::finish).
    pub fn finish_with(mut self, contents: &[u8]) -> Result<(), OutputError> {
        self.write_all(contents)
            .map_err(|source| at(&self.path, source))?;
        self.finish()
    }

    /// Gives the file its name. It outlives a loss of power then.
    pub fn finish(self) -> Result<(), OutputError> {
        let Self {
            contents,
            path,
            existing,
        } = self;
        (contents.give_back_room())
            .and_then(|()| contents.file().sync_all())
            .map_err(|source| at(&path, source))?;
        contents
            .name(&path, existing)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => OutputError::Exists(path.clone()),
                _ => at(&path, error),
            })?;
        sync_folder_of(&path).map_err(|source| at(&path, source))
    }
}

impl Contents {
    fn create(path: &Path, mode: u32) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let folder = folder_of(path);
        match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => Ok(Self::Unnamed(file.into())),
            // What open(2) says where there are none.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => tempfile::Builder::new()
                .permissions(Permissions::from_mode(mode))
                .tempfile_in(folder)
                .map(Self::Named),
            Err(error) => Err(error.into()),
        }
    }

    fn file(&self) -> &File {
        match self {
            Self::Unnamed(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// What was reserved and is not needed.
    fn give_back_room(&self) -> io::Result<()> {
        let length = self.file().metadata()?.len();
        self.file().set_len(length)
    }

    fn name(self, path: &Path, existing: Existing) -> io::Result<()> {
        let named = match (self, existing) {
            (Self::Unnamed(file), Existing::Keep) => return link(&file, path),
            // A link takes no other file's place; a file with a name does.
            (Self::Unnamed(file), Existing::Replace) => {
                let linked =
                    tempfile::Builder::new().make_in(folder_of(path), |name| link(&file, name))?;
                return linked.persist(path).map_err(|error| error.error);
            }
            (Self::Named(file), Existing::Keep) => file.persist_noclobber(path),
            (Self::Named(file), Existing::Replace) => file.persist(path),
        };
        named.map(drop).map_err(|error| error.error)
    }
}

/// Gives a file without a name one that nothing has (open(2), `O_TMPFILE`).
fn link(file: &File, path: &Path) -> io::Result<()> {
    let found = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, found, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

fn at(path: &Path, source: io::Error) -> OutputError {
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.contents.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.contents.file().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_only_its_owner_reads_it() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("secret");
        let mut file = OutputFile::create(&path, 0o600, Existing::Keep)?;
        file.write_all(b"half")?;
        // Nothing that a program could leave behind when it is killed.
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
        drop(file);
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
        let mut file = OutputFile::create(&path, 0o600, Existing::Keep)?;
        file.write_all(b"whole")?;
        file.finish()?;
        assert_eq!(fs::read(&path)?, b"whole");
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        Ok(())
    }

    #[test]
    fn room_that_was_reserved_is_no_content_and_is_given_back() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let mut file = OutputFile::create(&path, 0o600, Existing::Keep)?;
        file.reserve(1 << 20)?;
        file.write_all(b"whole")?;
        file.finish()?;
        assert_eq!(fs::read(&path)?, b"whole");
        assert!(fs::metadata(&path)?.blocks() * 512 < 1 << 20);
        Ok(())
    }

    #[test]
    fn what_has_the_name_stays_unless_it_is_to_be_replaced() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        // It came while the new one was written.
        let late = OutputFile::create(&path, 0o600, Existing::Keep)?;
        fs::write(&path, "first")?;
        assert!(matches!(late.finish(), Err(OutputError::Exists(_))));
        assert!(matches!(
            OutputFile::create(&path, 0o600, Existing::Keep),
            Err(OutputError::Exists(_))
        ));
        assert_eq!(fs::read(&path)?, b"first");
        OutputFile::create(&path, 0o600, Existing::Replace)?.finish()?;
        assert_eq!(fs::read(&path)?, b"");
        assert_eq!(fs::read_dir(folder.path())?.count(), 1);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link)?;
        assert!(matches!(
            OutputFile::create(&link, 0o600, Existing::Replace),
            Err(OutputError::NoFile(_))
        ));
        Ok(())
    }
}
