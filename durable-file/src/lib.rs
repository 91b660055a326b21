//! Files that must survive a crash: the old contents or the new ones, never a part. Small ones are written at
//! once ([`replace`], [`make`]), others piece by piece ([`OutputFile`]).

mod output_file;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use output_file::{Existing, OutputError, OutputFile};

/// Replaces a file. When this returns, the new contents outlive a loss of power: the folder is
/// written as well, since a rename that it does not know yet is undone by one.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // What an earlier attempt left may have another mode, or readers.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    let replaced = (file.write_all(contents))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // On a full disk, room for the next attempt.
        drop(fs::remove_file(&temporary));
    }
    replaced?;
    sync_folder_of(path)
}

/// Makes a file that must not be there yet.
pub fn make(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(contents)?;
    file.sync_all()?;
    sync_folder_of(path)
}

/// Has the names in the folder of this file outlive a loss of power.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder that a file is in; the current one for a bare file name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_an_earlier_attempt_left_does_not_open_the_new_file_to_others() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("key.pem");
        let left = folder.path().join("key.new");
        fs::write(&left, "half")?;
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644))?;
        replace(&path, b"whole", 0o600)?;
        assert_eq!(fs::read(&path)?, b"whole");
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        assert!(!left.exists());
        Ok(())
    }

    #[test]
    fn nothing_is_left_of_a_file_that_cannot_get_its_name() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("taken");
        fs::create_dir(&path)?;
        assert!(replace(&path, b"whole", 0o600).is_err());
        assert_eq!(fs::read_dir(folder.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn what_is_there_is_not_made_again() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("key.pem");
        make(&path, b"first", 0o600)?;
        let again = make(&path, b"second", 0o600);
        assert!(again.is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&path)?, b"first");
        Ok(())
    }
}
