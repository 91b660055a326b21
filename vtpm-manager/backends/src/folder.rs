//! A folder of sockets for each running vRoT.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use backend_link::instance::{self, Instance, InstanceError};
use backend_link::runtime_folder::{MANAGER_SOCKET, VHOST_USER_SOCKET, VMM_SOCKET};
use backend_link::transport::Transport;
use cert_chain::{Digest32, VrotId};

use super::BackendError;

/// Where one backend listens, and what it keeps locked while it lives. Only the manager's user
/// gets in, and, once there is a guest, the group of the VMMs as far as their socket; the backend
/// was in before it became a user of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFolder {
    vrot: VrotId,
    path: PathBuf,
    lock: Option<PathBuf>,
}

impl RuntimeFolder {
    /// The folder of a vRoT, whether it exists or not.
    ///
    /// The lock lies beside the store, not in the folder: whatever becomes of the folder, a process
    /// that goes on from the same state needs the same lock.
    pub fn of(runtime_dir: &Path, locks: &Path, vrot: VrotId) -> Self {
        Self {
            vrot,
            path: runtime_dir.join(vrot.to_string()),
            lock: Some(locks.join(vrot.to_string())),
        }
    }

    /// A folder for a copy of a vRoT that runs beside it for a moment. Should the copy outlive
    /// the manager, then it belongs to no record, and the next manager ends it.
    pub fn of_copy(runtime_dir: &Path, vrot: VrotId) -> Self {
        Self {
            vrot,
            path: runtime_dir.join(VrotId::random().to_string()),
            lock: None,
        }
    }

    /// Whether it is [that of a copy](Self::of_copy).
    pub fn is_of_copy(&self) -> bool {
        self.lock.is_none()
    }

    /// Makes the folder. One that is there already may be in use: it is left alone.
    pub fn create(&self) -> Result<(), BackendError> {
        self.check_unused()?;
        DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .map_err(|source| self.error("made", source))
    }

    /// Lets this group through to the VMM's socket.
    pub fn let_group_in(&self, gid: u32) -> Result<(), BackendError> {
        let let_in = |path: &Path, mode| {
            chown(path, None, Some(gid))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        };
        // A backend has one of them.
        let sockets = [Transport::Emulator, Transport::VirtioTpm];
        let socket = (sockets
            .into_iter()
            .map(|transport| self.vmm_socket(transport)))
        .find(|socket| socket.exists())
        .ok_or_else(|| io::ErrorKind::NotFound.into());
        // The folder last: without it the socket is out of reach.
        socket
            .and_then(|socket| let_in(&socket, 0o660))
            .and_then(|()| let_in(&self.path, 0o710))
            .map_err(|source| {
                let action = "given to `vmm_group`, of which the manager must be a member,";
                self.error(action, source)
            })
    }

    /// Removes the folder with all sockets in it, if no backend lives there any more. What the last
    /// one may have lost is still known, until it is [forgotten](Self::forget_loss).
    pub fn remove(&self) -> Result<(), BackendError> {
        let lock = self.unused()?;
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(self.error("removed", source));
            }
            Ok(()) | Err(_) => {}
        }
        let end = match self.is_noted_degraded()? {
            true => Instance::give_up,
            false => Instance::remove,
        };
        lock.map_or(Ok(()), |lock| {
            end(lock).map_err(|error| self.lock_error(error))
        })
    }

    /// Whether the last backend may have lost state that its guest was told of. A live one has lost
    /// nothing yet: that is an error.
    pub fn may_have_lost(&self) -> Result<bool, BackendError> {
        let lost = self.is_noted_degraded()?;
        if lost {
            self.check_unused()?;
        }
        Ok(lost)
    }

    fn is_noted_degraded(&self) -> Result<bool, BackendError> {
        let lost = self.lock.as_deref().map(instance::may_have_lost);
        let lost = lost.transpose().map_err(|error| self.lock_error(error))?;
        Ok(lost.unwrap_or(false))
    }

    /// Since when its backend has been answering ahead of the store, as far as it says.
    pub(super) fn degraded_since(&self) -> Option<SystemTime> {
        // What cannot be read is told where it matters.
        (self.lock.as_deref()).and_then(|lock| instance::degraded_since(lock).ok().flatten())
    }

    /// What was lost is recorded elsewhere, or of no interest any more.
    pub fn forget_loss(&self) -> Result<(), BackendError> {
        let lock = self.unused()?;
        lock.map_or(Ok(()), |lock| {
            lock.remove().map_err(|error| self.lock_error(error))
        })
    }

    /// Has the disk keep what its backend noted.
    pub fn sync_note(&self) -> io::Result<()> {
        let lock = self.lock.as_deref().map(File::open).transpose()?;
        lock.map_or(Ok(()), |lock| lock.sync_all())
    }

    /// Fails if a backend lives.
    fn check_unused(&self) -> Result<(), BackendError> {
        let lock = self.unused()?;
        lock.map_or(Ok(()), |lock| {
            lock.give_up().map_err(|error| self.lock_error(error))
        })
    }

    /// The lock, if it is free; the kernel gives it back when a backend has ended.
    fn unused(&self) -> Result<Option<Instance>, BackendError> {
        let lock = self.lock.as_deref().map(Instance::look).transpose();
        lock.map_err(|error| self.lock_error(error))
    }

    fn lock_error(&self, source: InstanceError) -> BackendError {
        BackendError::Instance {
            vrot: self.vrot,
            source,
        }
    }

    /// Notes which user its backend is.
    pub(super) fn note_user(&self, uid: u32) -> Result<(), BackendError> {
        fs::write(self.path.join(USER), uid.to_string())
            .map_err(|source| self.error("written to", source))
    }

    /// Which user its backend is, if it is another one than the manager's.
    pub(super) fn user(&self) -> Option<u32> {
        fs::read_to_string(self.path.join(USER)).ok()?.parse().ok()
    }

    /// A number that is the same for the same folder, and hardly for another.
    pub(super) fn number(&self) -> u32 {
        let name = self.path.file_name().unwrap_or_default();
        let digest = Digest32::of(name.as_bytes());
        match digest.as_bytes().first_chunk() {
            Some(bytes) => u32::from_be_bytes(*bytes),
            None => 0,
        }
    }

    /// The vRoT.
    pub fn vrot(&self) -> VrotId {
        self.vrot
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its backend keeps locked, unless it is one of a copy.
    pub fn lock(&self) -> Option<&Path> {
        self.lock.as_deref()
    }

    /// Where the VMM attaches.
    pub fn vmm_socket(&self, transport: Transport) -> PathBuf {
        self.path.join(match transport.is_vhost_user() {
            true => VHOST_USER_SOCKET,
            false => VMM_SOCKET,
        })
    }

    /// Where the manager dials.
    pub fn manager(&self) -> PathBuf {
        self.path.join(MANAGER_SOCKET)
    }

    fn error(&self, action: &'static str, source: io::Error) -> BackendError {
        BackendError::Folder {
            path: self.path.clone(),
            action,
            source,
        }
    }
}

/// The file that says which user a backend is.
const USER: &str = "uid";

/// The folders that backends were given, of live and of dead ones.
pub fn running(runtime_dir: &Path, locks: &Path) -> Result<Vec<RuntimeFolder>, BackendError> {
    let failed = |source| BackendError::Folder {
        path: runtime_dir.to_owned(),
        action: "read",
        source,
    };
    let mut folders = Vec::new();
    for entry in fs::read_dir(runtime_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let vrot = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(vrot) = vrot
            && entry.file_type().map_err(failed)?.is_dir()
        {
            folders.push(RuntimeFolder::of(runtime_dir, locks, vrot));
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_found_again_and_nothing_else() -> anyhow::Result<()> {
        let (runtime_dir, locks) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let folder = RuntimeFolder::of(runtime_dir.path(), locks.path(), VrotId::random());
        folder.create()?;
        fs::create_dir(runtime_dir.path().join("something else"))?;
        fs::write(runtime_dir.path().join(VrotId::random().to_string()), "")?;
        let found = running(runtime_dir.path(), locks.path())?;
        assert_eq!(found, std::slice::from_ref(&folder));
        assert!(folder.create().is_err(), "a folder in use is left alone");
        folder.remove()?;
        folder.remove()?;
        assert_eq!(running(runtime_dir.path(), locks.path())?, []);
        assert_eq!(fs::read_dir(locks.path())?.count(), 0);
        Ok(())
    }

    /// As at the end of a process: another test that starts a program has a copy of the lock for a
    /// moment.
    fn ends(backend: Option<Instance>) -> anyhow::Result<()> {
        Ok(backend.map_or(Ok(()), Instance::give_up)?)
    }

    #[test]
    fn what_a_backend_may_have_lost_is_known_until_it_is_recorded() -> anyhow::Result<()> {
        let (runtime_dir, locks) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let folder = RuntimeFolder::of(runtime_dir.path(), locks.path(), VrotId::random());
        for degraded in [false, true] {
            folder.create()?;
            let backend = folder.lock().map(Instance::take).transpose()?;
            backend
                .as_ref()
                .map(|backend| backend.note(degraded))
                .transpose()?;
            ends(backend)?;
            folder.remove()?;
            assert!(!folder.path().exists());
            assert_eq!(folder.may_have_lost()?, degraded);
        }
        folder.forget_loss()?;
        assert!(!folder.may_have_lost()?);
        assert_eq!(fs::read_dir(locks.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn while_a_backend_lives_its_folder_is_neither_removed_nor_made_anew() -> anyhow::Result<()> {
        let (runtime_dir, locks) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let folder = RuntimeFolder::of(runtime_dir.path(), locks.path(), VrotId::random());
        folder.create()?;
        let backend = folder.lock().map(Instance::take).transpose()?;
        let removed = folder.remove();
        assert!(matches!(removed, Err(BackendError::Instance { .. })));
        assert!(folder.path().exists());
        fs::remove_dir(folder.path())?;
        let made = folder.create();
        assert!(matches!(made, Err(BackendError::Instance { .. })));
        ends(backend)?;
        folder.create()?;
        Ok(())
    }
}
