//! Files that commands write: whole under their name, or not there.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use durable_file::{folder_of, sync_folder_of};
use tempfile::NamedTempFile;

/// A file that has its name once it is [finished](OutputFile::finish). Until then it is a temporary one
/// in the same folder, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct OutputFile {
    temporary: NamedTempFile,
    path: PathBuf,
    existing: Existing,
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and the new one is not made.
    Keep,
    /// The new one takes its place.
    Replace,
}

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// There is one.
    #[error("{} exists: nothing was written; --replace puts the new file in its place", .0.display())]
    Exists(PathBuf),
    /// A device, a pipe, a link.
    #[error(
        "{} is no regular file: leave the option out to write to standard output",
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

impl OutputFile {
    /// A file with this mode, cut by the umask.
    pub(crate) fn create(path: &Path, mode: u32, existing: Existing) -> Result<Self, OutputError> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => return Err(OutputError::NoFile(path.to_owned())),
            Ok(_) if existing == Existing::Keep => {
                return Err(OutputError::Exists(path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        let temporary = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder_of(path))
            .map_err(|source| at(path, source))?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
            existing,
        })
    }

    /// Gives the file its name. It outlives a loss of power then.
    pub(crate) fn finish(self) -> Result<(), OutputError> {
        let Self {
            temporary,
            path,
            existing,
        } = self;
        let file = temporary.as_file();
        file.sync_all().map_err(|source| at(&path, source))?;
        match existing {
            Existing::Replace => temporary.persist(&path),
            Existing::Keep => temporary.persist_noclobber(&path),
        }
        .map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => OutputError::Exists(path.clone()),
            _ => at(&path, error.error),
        })?;
        sync_folder_of(&path).map_err(|source| at(&path, source))
    }
}

fn at(path: &Path, source: io::Error) -> OutputError {
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_only_its_owner_reads_it() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("secret");
        let mut file = OutputFile::create(&path, 0o600, Existing::Keep)?;
        file.write_all(b"half")?;
        assert!(!path.exists());
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
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link)?;
        assert!(matches!(
            OutputFile::create(&link, 0o600, Existing::Replace),
            Err(OutputError::NoFile(_))
        ));
        Ok(())
    }
}
