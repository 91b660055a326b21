//! A vRoT for a folder: what swtpm_setup is asked for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use uuid::Uuid;

use crate::channel::Channel;
use crate::error::HandoverError;
use crate::folder_file::{NAME, has, open_folder, open_in, write_in};
use crate::message::{FromManager, Lock, Named, ToManager, Wanted};

/// What is to be set up.
#[derive(Clone, Debug)]
pub struct Order {
    /// What becomes of a vRoT that the folder has.
    pub existing: Existing,
    /// The VM's number; without one, the manager chooses it.
    pub vm: Option<Uuid>,
    /// What people call the VM.
    pub name: Option<String>,
    /// Of the secret that the launcher gives, if it does.
    pub lock: Option<Lock>,
}

/// What becomes of a vRoT that the folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is in the way.
    Refuse,
    /// It stays, and nothing is made.
    Keep,
    /// It is deleted for good, and another one made.
    Replace,
}

/// A vRoT that a folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vrot {
    /// Its number.
    pub vrot: Uuid,
    /// Its VM's number.
    pub vm: Uuid,
    /// Whether it was made just now.
    pub is_new: bool,
}

/// Name and number of the VM in the id that launchers give: `NAME:UUID` of libvirt, or either.
pub fn vm_of(id: &str) -> (Option<String>, Option<Uuid>) {
    let name = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
    if let Ok(vm) = id.parse() {
        return (None, Some(vm));
    }
    match id.rsplit_once(':').map(|(name, vm)| (name, vm.parse())) {
        Some((before, Ok(vm))) => (name(before), Some(vm)),
        _ => (name(id), None),
    }
}

/// For a manager that is just being restarted. Launchers wait for some seconds themselves.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// The files of a swtpm.
const PLAIN_STATE: [&str; 2] = ["tpm2-00.permall", "tpm-00.permall"];

/// Makes a vRoT for a folder, durably. One that was begun and not finished is finished.
pub fn set_up(socket: &Path, folder: &Path, order: &Order) -> Result<Vrot, HandoverError> {
    let wanted = Wanted {
        vm: order.vm.map(|vm| vm.into_bytes().into()),
        name: order.name.clone(),
        unasked: false,
    };
    let opened = Folder::open(folder)?;
    let lock = order.lock;
    let _held = opened.hold()?;
    match (opened.file()?, order.existing) {
        (None, _) => make(socket, &opened, wanted, lock),
        (Some(file), Existing::Keep) => check(socket, &file, lock),
        (Some(file), Existing::Replace) => {
            let order = ToManager::Replace { wanted, lock };
            made(socket, &opened, &order, file.as_fd())
        }
        (Some(_), Existing::Refuse) => Err(HandoverError::Refused {
            reason: format!(
                "`{}/{NAME}`: the folder has a vRoT already. `--not-overwrite` leaves it as it is, \
                 `--overwrite` deletes it for good",
                folder.display()
            ),
        }),
    }
}

/// Has the vRoT of a folder have these PCR banks (`TPM_ALG_ID`) and no others, from its next start on.
pub fn activate_banks(
    socket: &Path,
    folder: &Path,
    lock: Option<Lock>,
    banks: &[u16],
) -> Result<Vrot, HandoverError> {
    let opened = Folder::open(folder)?;
    let file = opened.file()?;
    let file = file.ok_or_else(|| opened.unusable(io::ErrorKind::NotFound.into()))?;
    let banks = banks.to_vec();
    let order = ToManager::ActivateBanks { banks, lock };
    let (_, answer) = first(socket, &order, Some(file.as_fd()))?;
    known(answer).map(|named| vrot(&named, false))
}

/// The file of a folder whose vRoT is about to be started. A folder that never had one gets one.
pub(crate) fn file_to_start(
    socket: &Path,
    folder: &Path,
    lock: Option<Lock>,
) -> Result<File, HandoverError> {
    let opened = Folder::open(folder)?;
    if let Some(file) = opened.file()? {
        return Ok(file);
    }
    let _held = opened.hold()?;
    let wanted = Wanted {
        vm: None,
        name: None,
        unasked: true,
    };
    make(socket, &opened, wanted, lock)?;
    let made = opened.file()?;
    made.ok_or_else(|| opened.unusable(io::ErrorKind::NotFound.into()))
}

/// The vRoT of a folder's file, if the manager knows it as that.
pub fn check(socket: &Path, file: &File, lock: Option<Lock>) -> Result<Vrot, HandoverError> {
    let (_, answer) = first(socket, &ToManager::Check { lock }, Some(file.as_fd()))?;
    known(answer).map(|named| vrot(&named, false))
}

fn make(
    socket: &Path,
    folder: &Folder<'_>,
    wanted: Wanted,
    lock: Option<Lock>,
) -> Result<Vrot, HandoverError> {
    if let Some(file) = PLAIN_STATE.into_iter().find(|name| has(&folder.fd, name)) {
        return Err(HandoverError::PlainState {
            path: folder.path.to_owned(),
            file,
        });
    }
    let order = ToManager::SetUp { wanted, lock };
    made(socket, folder, &order, folder.fd.as_fd())
}

fn made(
    socket: &Path,
    folder: &Folder<'_>,
    order: &ToManager,
    descriptor: BorrowedFd<'_>,
) -> Result<Vrot, HandoverError> {
    let (channel, answer) = first(socket, order, Some(descriptor))?;
    let FromManager::Made { file } = answer else {
        return Err(unexpected(answer));
    };
    let file = write_in(&folder.fd, &file).map_err(|source| folder.unusable(source))?;
    let answer = ask(&channel, &ToManager::Written, Some(file.as_fd()))?;
    known(answer).map(|named| vrot(&named, true))
}

/// A connection that begins with this message, and the answer. A manager that is being started is
/// waited for.
pub(crate) fn first(
    socket: &Path,
    message: &ToManager,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(Channel, FromManager), HandoverError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answered = connect(socket).and_then(|channel| {
            let answer = ask(&channel, message, descriptor)?;
            Ok((channel, answer))
        });
        let not_yet = match &answered {
            Ok((_, FromManager::NotYet { .. })) | Err(HandoverError::NoAnswer) => true,
            Err(HandoverError::Unreachable { source, .. }) => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ),
            _ => false,
        };
        if !not_yet || Instant::now() >= deadline {
            return answered;
        }
        sleep(PAUSE);
    }
}

pub(crate) fn connect(socket: &Path) -> Result<Channel, HandoverError> {
    Channel::connect(socket).map_err(|source| HandoverError::Unreachable {
        socket: socket.to_owned(),
        source,
    })
}

fn ask(
    channel: &Channel,
    message: &ToManager,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<FromManager, HandoverError> {
    // One that was turned away is told why, and then nobody listens.
    let sent = channel.send(message, descriptor);
    match channel.receive() {
        Ok(Some(packet)) => packet.message().map_err(HandoverError::Connection),
        Ok(None) => Err(HandoverError::NoAnswer),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Err(HandoverError::NoAnswer)
        }
        Err(error) => Err(HandoverError::Connection(sent.err().unwrap_or(error))),
    }
}

pub(crate) fn known(answer: FromManager) -> Result<Named, HandoverError> {
    match answer {
        FromManager::Known(named) | FromManager::Started(named) => Ok(named),
        other => Err(unexpected(other)),
    }
}

pub(crate) fn unexpected(answer: FromManager) -> HandoverError {
    match answer {
        FromManager::Refused { reason } | FromManager::NotYet { reason } => {
            HandoverError::Refused { reason }
        }
        FromManager::Ended { reason } => HandoverError::Ended { reason },
        _ => HandoverError::NoAnswer,
    }
}

pub(crate) fn vrot(named: &Named, is_new: bool) -> Vrot {
    Vrot {
        vrot: Uuid::from_bytes(*named.vrot),
        vm: Uuid::from_bytes(*named.vm),
        is_new,
    }
}

/// An open folder of a VM.
struct Folder<'p> {
    path: &'p Path,
    fd: OwnedFd,
}

impl<'p> Folder<'p> {
    fn open(path: &'p Path) -> Result<Self, HandoverError> {
        let fd = open_folder(path).map_err(|source| HandoverError::Folder {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { path, fd })
    }

    fn file(&self) -> Result<Option<File>, HandoverError> {
        open_in(&self.fd).map_err(|source| HandoverError::File {
            path: self.path.to_owned(),
            source: source.into(),
        })
    }

    /// Two programs never write the file at a time.
    fn hold(&self) -> Result<Flock<OwnedFd>, HandoverError> {
        let fd = self.fd.try_clone();
        let fd = fd.map_err(|source| self.unusable(source))?;
        Flock::lock(fd, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            Errno::EWOULDBLOCK => HandoverError::Busy {
                path: self.path.to_owned(),
            },
            error => self.unusable(error.into()),
        })
    }

    fn unusable(&self, source: io::Error) -> HandoverError {
        HandoverError::Folder {
            path: self.path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_a_vm_by_name_number_or_both() {
        let uuid = Uuid::from_bytes([7; 16]);
        let text = uuid.to_string();
        let web = Some("web:2".to_owned());
        assert_eq!(vm_of(&format!("web:2:{text}")), (web.clone(), Some(uuid)));
        assert_eq!(vm_of(&text), (None, Some(uuid)));
        assert_eq!(vm_of("web:2"), (web, None));
        assert_eq!(vm_of(""), (None, None));
    }
}
