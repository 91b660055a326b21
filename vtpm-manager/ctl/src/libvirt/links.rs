//! Links to the vRoTs' sockets, called after their VMs: a domain can name one before its vRoT exists.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cert_chain::VmId;
use nix::unistd::geteuid;

use super::domain;
use super::error::LibvirtError;

/// Whoever else could write in the folder could lead a VMM to another VM's vRoT.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Links a VM to the socket of its vRoT, in the place of an older link.
pub(super) fn make(links: &Path, vm: VmId, socket: &Path) -> Result<(), LibvirtError> {
    make_folder(links)?;
    let link = domain::link(links, vm);
    let next = links.join(format!(".{vm}.next"));
    let failed = |source| LibvirtError::file(&link, "made", source);
    remove_file(&next)?;
    symlink(socket, &next).map_err(failed)?;
    fs::rename(&next, &link).map_err(failed)
}

/// Removes the link of a VM.
pub(super) fn remove(links: &Path, vm: VmId) -> Result<(), LibvirtError> {
    remove_file(&domain::link(links, vm))
}

/// Remembers, until the domain is prepared, that it is started from what was saved.
pub(super) fn mark_restored(links: &Path, vm: VmId) -> Result<(), LibvirtError> {
    make_folder(links)?;
    let mark = mark(links, vm);
    fs::write(&mark, []).map_err(|source| LibvirtError::file(&mark, "made", source))
}

/// Whether that was remembered; it is forgotten.
pub(super) fn take_mark(links: &Path, vm: VmId) -> Result<bool, LibvirtError> {
    let mark = mark(links, vm);
    let is_there = fs::symlink_metadata(&mark).is_ok();
    remove_file(&mark)?;
    Ok(is_there)
}

fn mark(links: &Path, vm: VmId) -> PathBuf {
    links.join(format!(".{vm}.restored"))
}

fn make_folder(links: &Path) -> Result<(), LibvirtError> {
    match DirBuilder::new().mode(0o755).create(links) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(LibvirtError::file(links, "made", error));
        }
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(links)
        .map_err(|source| LibvirtError::file(links, "looked at", source))?;
    let is_safe = found.is_dir()
        && found.uid() == geteuid().as_raw()
        && found.mode() & WRITABLE_BY_OTHERS == 0;
    if is_safe {
        return Ok(());
    }
    Err(LibvirtError::Links {
        path: links.to_owned(),
    })
}

fn remove_file(path: &Path) -> Result<(), LibvirtError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(LibvirtError::file(path, "removed", error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::domain::tests::VM;
    use super::*;

    #[test]
    fn a_link_replaces_an_older_one_and_a_folder_of_others_is_refused() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let (links, vm) = (folder.path().join("links"), VM.parse()?);
        make(&links, vm, Path::new("/one"))?;
        make(&links, vm, Path::new("/two"))?;
        let link = domain::link(&links, vm);
        assert_eq!(fs::read_link(&link)?, Path::new("/two"));
        assert_eq!(fs::read_dir(&links)?.count(), 1);
        remove(&links, vm)?;
        remove(&links, vm)?;
        assert!(fs::symlink_metadata(&link).is_err());

        fs::set_permissions(&links, fs::Permissions::from_mode(0o777))?;
        assert!(make(&links, vm, Path::new("/two")).is_err());
        let elsewhere = folder.path().join("elsewhere");
        symlink(folder.path(), &elsewhere)?;
        assert!(make(&elsewhere, vm, Path::new("/two")).is_err());
        Ok(())
    }
}
