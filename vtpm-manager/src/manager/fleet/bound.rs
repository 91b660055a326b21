//! vRoTs of folders: made, recognised and started by the file that lies in a VM's folder.
//!
//! What decides is the file, not the path and not the VM's number: a vRoT never comes back by
//! another folder, and no folder gets another vRoT in the place of the one that it had.

use std::sync::Arc;
use std::time::Duration;

use api_types::VrotKey;
use backend_link::transport::Transport;
use cert_chain::{Digest32, Tenant, VmId, VrotId};
use guarded_state::disk::Batch;
use tokio::time::{Instant, sleep};

use super::{Fleet, Launch, Order};
use crate::audit::Event;
use crate::config::Vanished;
use crate::manager::error::ManagerError;
use crate::manager::registry::{Adoption, Vrot};
use crate::vrot::{FileIdentity, FolderBinding, Lifecycle, VrotName, VrotRecord};

/// A folder's file, as its holder presents it.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The vRoT that it names.
    pub vrot: VrotId,
    /// The host that it names.
    pub host: String,
    /// Of its token, with its lock.
    pub token: Digest32,
    /// The folder.
    pub path: String,
    /// Which file it is.
    pub file: FileIdentity,
    /// The file's owner.
    pub uid: u32,
}

/// A vRoT for a folder that has none.
#[derive(Clone, Debug)]
pub struct FolderOrder {
    /// The folder.
    pub path: String,
    /// Who sets it up.
    pub uid: u32,
    /// The VM; without one, the manager chooses its number.
    pub vm: Option<VmId>,
    /// What people call it.
    pub name: Option<VrotName>,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// Of the token that the folder's file will hold, with its lock.
    pub token: Digest32,
    /// Whether the folder is about to be started, and nobody ordered a new vRoT.
    pub unasked: bool,
    /// What becomes of the vRoT of a folder that is gone.
    pub vanished: Vanished,
}

/// Why a folder gets no vRoT.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The manager does not do it.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// It comes from elsewhere.
    #[error(
        "the folder `{path}` is that of vRoT {vrot} on host `{host}`, whose state is sealed to that \
         host's TPM and did not come along; this host is `{here}`, and nothing was reset. Run the VM on \
         `{host}`; or, if it may have a new and empty TPM here, remove `vrot.json` from the folder and \
         set it up again"
    )]
    OtherHost {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
        /// The host that the file names.
        host: String,
        /// This one.
        here: String,
    },
    /// Its vRoT is gone.
    #[error(
        "the folder `{path}` is that of vRoT {vrot}, which was deleted on this host: it does not come \
         back. If the VM may have a new and empty TPM, remove `vrot.json` from the folder and set it up \
         again"
    )]
    Deleted {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// The vRoT was not made for a folder, or for another one.
    #[error(
        "`vrot.json` in `{path}` is not the file of vRoT {vrot}, or the secret that the launcher gave \
         (`--key`, `--pwdfile-fd`) is not the one of its set-up: the folder is not served"
    )]
    Stranger {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// The file is a copy.
    #[error(
        "the folder `{path}` is a copy: vRoT {vrot} belongs to the folder that was last seen at \
         `{original}`, and two VMs never share one. A cloned VM gets a TPM of its own when `vrot.json` \
         is removed from its folder and it is set up again. If this folder was restored from a backup \
         and the other is gone, let an operator say so with `vtpmctl accept-folder {vrot}`"
    )]
    Copied {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
        /// Where its folder was seen.
        original: String,
    },
    /// The VM has a vRoT that belongs to no folder, or to another.
    #[error(
        "VM {vm} has vRoT {vrot} already, {whose}: nothing was set up for `{path}`. Use that, or delete \
         it with `vtpmctl delete {vrot}`"
    )]
    VmTaken {
        /// The folder.
        path: String,
        /// The VM.
        vm: VmId,
        /// Its vRoT.
        vrot: VrotId,
        /// In which folder.
        whose: String,
    },
    /// The same, and the vRoT is none of the caller's business.
    #[error(
        "VM {vm} is taken: nothing was set up for `{path}`. The VM's number is that of a vRoT which \
         this user did not set up"
    )]
    VmOfAnother {
        /// The folder.
        path: String,
        /// The VM.
        vm: VmId,
    },
    /// It is not known which one's place this would take.
    #[error(
        "vRoTs {first} and {second} were both seen in the folder `{path}` last: nothing was set up. \
         Start the one whose folder was moved, or delete one with `vtpmctl delete`"
    )]
    Ambiguous {
        /// The folder.
        path: String,
        /// One vRoT.
        first: VrotId,
        /// Another.
        second: VrotId,
    },
    /// The folder was there before, and is another one now.
    #[error(
        "the folder that was at `{path}` is gone, and its vRoT {vrot} is kept (`vanished` in the \
         manager's configuration): nothing was set up in the new folder. If the old one is not needed \
         any more, delete it with `vtpmctl delete {vrot}`"
    )]
    Kept {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// A folder is started that lost its file.
    #[error(
        "the folder `{path}` had vRoT {vrot}, and `vrot.json` is missing from it: nothing was started, \
         for another vRoT would be an empty TPM. Restore the folder, or set it up again with \
         swtpm_setup"
    )]
    FileMissing {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// A VM has its vRoT.
    #[error(
        "vRoT {vrot} runs, and a VMM is attached to it: it is not started anew under that VM. End the VM \
         first, or stop the vRoT with `vtpmctl stop {vrot}`"
    )]
    InUse {
        /// The vRoT.
        vrot: VrotId,
    },
    /// Its vRoT does not run any more.
    #[error("the vRoT was stopped while the manager was restarted")]
    NotRunning,
}

/// How long it takes at most until a backend has seen that a process which was killed just now, and
/// its VMM with it, is gone.
const LEFT_WITHIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Refuses a vRoT that runs with a VMM: its process may only not have found this manager yet.
async fn check_is_left(vrot: &Vrot) -> Result<(), FolderError> {
    let deadline = Instant::now() + LEFT_WITHIN;
    let id = vrot.record().vrot;
    loop {
        let adoption = vrot.adoption();
        if adoption == Some(Adoption::Waiting) {
            return Err(ManagerError::BeingTakenOver { vrot: id }.into());
        }
        // A backend of another version does not say it.
        let attached = vrot.observed().map(|observed| observed.attached);
        if !attached.unwrap_or(adoption == Some(Adoption::OtherVersion)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(FolderError::InUse { vrot: id });
        }
        sleep(PAUSE).await;
    }
}

/// What is where a vRoT is to be made.
enum Place {
    /// Nothing.
    Free,
    /// A vRoT that was made there, and whose file was never written.
    Begun(Arc<Vrot>),
    /// One whose folder is gone, and that goes with it.
    Vanished(VrotId),
}

/// Whether nobody can have used it: it never ran, and no file says that it is its folder's.
fn is_begun(record: &VrotRecord) -> bool {
    let is_unwritten = (record.folder.as_ref()).is_some_and(|bound| bound.file.is_none());
    is_unwritten && never_ran(record)
}

fn never_ran(record: &VrotRecord) -> bool {
    matches!(record.lifecycle, Lifecycle::Assigned { .. })
}

impl FolderOrder {
    /// Refuses because the VM has this vRoT.
    fn vm_taken(&self, record: &VrotRecord) -> FolderError {
        let (path, vm) = (self.path.clone(), record.vm);
        let owner = record.folder.as_ref().map(|bound| bound.uid);
        if self.uid != 0 && owner != Some(self.uid) {
            return FolderError::VmOfAnother { path, vm };
        }
        FolderError::VmTaken {
            path,
            vm,
            vrot: record.vrot,
            whose: match &record.folder {
                Some(bound) => format!("in the folder `{}`", bound.path),
                None => "in no folder".to_owned(),
            },
        }
    }
}

impl Fleet {
    /// The vRoT of the folder that this file is of.
    pub fn of_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, FolderError> {
        let id = presented.vrot;
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Err(self.unknown(presented));
        };
        self.recognise(&vrot.record(), presented)?;
        Ok(vrot)
    }

    fn unknown(&self, presented: &Presented) -> FolderError {
        let (path, vrot) = (presented.path.clone(), presented.vrot);
        let here = self.certification.host_name();
        let here = here.map_or_else(|| "not enrolled".to_owned(), |host| host.to_string());
        if here == presented.host {
            return FolderError::Deleted { path, vrot };
        }
        FolderError::OtherHost {
            path,
            vrot,
            host: presented.host.clone(),
            here,
        }
    }

    fn recognise<'r>(
        &self,
        record: &'r VrotRecord,
        presented: &Presented,
    ) -> Result<&'r FolderBinding, FolderError> {
        let (path, vrot) = (presented.path.clone(), presented.vrot);
        match &record.folder {
            _ if matches!(record.lifecycle, Lifecycle::Deleted { .. }) => {
                Err(FolderError::Deleted { path, vrot })
            }
            Some(bound) if bound.token != presented.token => {
                Err(FolderError::Stranger { path, vrot })
            }
            Some(bound) if bound.is_open_to(presented.file) => Ok(bound),
            Some(bound) => Err(FolderError::Copied {
                path,
                vrot,
                original: bound.path.clone(),
            }),
            None => Err(FolderError::Stranger { path, vrot }),
        }
    }

    /// Notes which file the folder's is, and where the folder is now.
    pub async fn bind_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, FolderError> {
        let vrot = self.of_folder(presented)?;
        let gate = vrot.gate_for_an_order().await;
        let before = vrot.record();
        let bound = FolderBinding {
            file: Some(presented.file),
            path: presented.path.clone(),
            uid: presented.uid,
            accepts_another: false,
            ..self.recognise(&before, presented)?.clone()
        };
        if before.folder.as_ref() != Some(&bound) {
            self.change_folder(&vrot, bound).await?;
        }
        drop(gate);
        Ok(vrot)
    }

    /// The next file with the right token is the folder's: an operator says that the folder was
    /// restored, and that no other is left.
    pub async fn accept_folder(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let record = vrot.record();
        let bound = record
            .folder
            .clone()
            .ok_or(ManagerError::NoFolder { vrot: record.vrot })?;
        // Where none was written yet, none is gone.
        if bound.file.is_some() && !bound.accepts_another {
            let bound = FolderBinding {
                accepts_another: true,
                ..bound
            };
            self.change_folder(&vrot, bound).await?;
        }
        drop(gate);
        Ok(vrot)
    }

    async fn change_folder(&self, vrot: &Vrot, bound: FolderBinding) -> Result<(), ManagerError> {
        let mut record = vrot.record_to_change();
        let event = Event::FolderNoted {
            vrot: record.vrot,
            folder: bound.path.as_str().into(),
            is_certain: bound.file.is_some() && !bound.accepts_another,
        };
        record.folder = Some(bound);
        let change: Batch = record.to_batch();
        let before = vrot.record();
        self.guarded.change(&before, vec![event], change).await?;
        vrot.set_record(record);
        Ok(())
    }

    /// Makes a vRoT for a folder. Where one was made and its file never written, that is the one.
    pub async fn set_up_folder(
        self: &Arc<Self>,
        order: FolderOrder,
    ) -> Result<Arc<Vrot>, FolderError> {
        let binding = FolderBinding {
            token: order.token,
            path: order.path.clone(),
            file: None,
            uid: order.uid,
            accepts_another: false,
        };
        match self.place_for(&order, None)? {
            Place::Free => (),
            Place::Begun(vrot) => {
                let gate = vrot.gate_for_an_order().await;
                // It may have been started meanwhile, or its file written.
                if !is_begun(&vrot.record()) {
                    let vrot = vrot.record().vrot;
                    let path = order.path;
                    return Err(FolderError::Kept { path, vrot });
                }
                self.change_folder(&vrot, binding).await?;
                drop(gate);
                return Ok(vrot);
            }
            Place::Vanished(vrot) => {
                let path = order.path.as_str();
                tracing::warn!(%vrot, path, "its folder is gone, and it is deleted");
                let folder = path.into();
                let event = Event::FolderVanished { vrot, folder };
                self.guarded.record(event).await?;
                self.delete(vrot.into()).await?;
            }
        }
        let created = self.create(Order {
            vm: order.vm,
            tenant: order.tenant,
            name: order.name,
            launch: Launch::Later,
            transport: Transport::Emulator,
            folder: Some(binding),
            requires_launch: false,
            measured: None,
        });
        Ok(created.await?)
    }

    /// Deletes the vRoT of a folder and makes another one. What can be seen beforehand to stand in the
    /// way of the new one leaves the old one as it is.
    pub async fn replace_folder(
        self: &Arc<Self>,
        old: &Presented,
        order: FolderOrder,
    ) -> Result<Arc<Vrot>, FolderError> {
        self.of_folder(old)?;
        self.place_for(&order, Some(old.vrot))?;
        self.delete(old.vrot.into()).await?;
        self.set_up_folder(order).await
    }

    /// What is in the place of a vRoT that is to be made for a folder. By a path nobody finds but what
    /// the same user set up: a path is what the kernel names it to that user.
    fn place_for(
        &self,
        order: &FolderOrder,
        besides: Option<VrotId>,
    ) -> Result<Place, FolderError> {
        let path = || order.path.clone();
        let mut found: Option<Arc<Vrot>> = None;
        for vrot in self.registry.all() {
            let record = vrot.record();
            if Some(record.vrot) == besides {
                continue;
            }
            let bound = record.folder.as_ref();
            let is_here =
                bound.is_some_and(|bound| (bound.uid, &bound.path) == (order.uid, &order.path));
            if !is_here && Some(record.vm) == order.vm {
                return Err(order.vm_taken(&record));
            }
            if !is_here {
                continue;
            }
            if let Some(first) = found.replace(vrot) {
                return Err(FolderError::Ambiguous {
                    path: path(),
                    first: first.record().vrot,
                    second: record.vrot,
                });
            }
        }
        if let Some(vm) = order.vm
            && self.factory.has(VrotId::from_uuid(*vm.as_uuid()))
        {
            return Err(ManagerError::VmTaken { vm }.into());
        }
        let Some(vrot) = found else {
            return Ok(Place::Free);
        };
        let record = vrot.record();
        let id = record.vrot;
        if is_begun(&record) && order.vm.is_none_or(|vm| vm == record.vm) {
            return Ok(Place::Begun(vrot));
        }
        match order.vanished {
            _ if order.unasked => Err(FolderError::FileMissing {
                path: path(),
                vrot: id,
            }),
            // Nobody has anything in it: a launcher removes the folder that it had set up when it
            // cannot start the VM.
            _ if never_ran(&record) => Ok(Place::Vanished(id)),
            Vanished::Keep => Err(FolderError::Kept {
                path: path(),
                vrot: id,
            }),
            Vanished::Delete => Ok(Place::Vanished(id)),
        }
    }

    /// Starts the vRoT of a folder for which a new process stands. One that runs without a VMM is of a
    /// process that has gone: it is stopped before.
    pub async fn start_folder(
        self: &Arc<Self>,
        presented: &Presented,
    ) -> Result<Arc<Vrot>, FolderError> {
        let vrot = self.bind_folder(presented).await?;
        let key = presented.vrot.into();
        if vrot.record().lifecycle.is_running() {
            check_is_left(&vrot).await?;
            self.stop(key).await?;
        }
        let started = match vrot.record().lifecycle {
            Lifecycle::Suspended { .. } => self.resume(key).await,
            _ => self.start(key).await,
        };
        Ok(started?)
    }

    /// The vRoT of a folder for which the same process stands as before the manager was restarted.
    pub fn rejoin_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, FolderError> {
        let vrot = self.of_folder(presented)?;
        if let Some(Adoption::Waiting) = vrot.adoption() {
            let vrot = presented.vrot;
            return Err(ManagerError::BeingTakenOver { vrot }.into());
        }
        match vrot.record().lifecycle.is_running() {
            true => Ok(vrot),
            false => Err(FolderError::NotRunning),
        }
    }
}
