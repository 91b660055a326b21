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
use crate::manager::folder_error::FolderError;
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

/// How long it takes at most until a backend has seen that a process which was killed just now, and
/// its VMM with it, is gone.
const LEFT_WITHIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Refuses a vRoT that runs with a VMM: its process may only not have found this manager yet.
async fn check_is_left(vrot: &Vrot) -> Result<(), ManagerError> {
    let deadline = Instant::now() + LEFT_WITHIN;
    let id = vrot.record().vrot;
    loop {
        let adoption = vrot.adoption();
        if adoption == Some(Adoption::Waiting) {
            return Err(ManagerError::BeingTakenOver { vrot: id });
        }
        // A backend of another version does not say it.
        let attached = vrot.observed().map(|observed| observed.attached);
        if !attached.unwrap_or(adoption == Some(Adoption::OtherVersion)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(FolderError::InUse { vrot: id }.into());
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
    pub fn of_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, ManagerError> {
        let id = presented.vrot;
        let Some(vrot) = self.registry.find_vrot(id) else {
            return Err(self.unknown(presented).into());
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
    pub async fn bind_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, ManagerError> {
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
    ) -> Result<Arc<Vrot>, ManagerError> {
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
                    return Err(FolderError::Kept { path, vrot }.into());
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
        created.await
    }

    /// Deletes the vRoT of a folder and makes another one. What can be seen beforehand to stand in the
    /// way of the new one leaves the old one as it is.
    pub async fn replace_folder(
        self: &Arc<Self>,
        old: &Presented,
        order: FolderOrder,
    ) -> Result<Arc<Vrot>, ManagerError> {
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
    ) -> Result<Place, ManagerError> {
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
                return Err(order.vm_taken(&record).into());
            }
            if !is_here {
                continue;
            }
            if let Some(first) = found.replace(vrot) {
                let error = FolderError::Ambiguous {
                    path: path(),
                    first: first.record().vrot,
                    second: record.vrot,
                };
                return Err(error.into());
            }
        }
        if let Some(vm) = order.vm
            && self.factory.has(VrotId::from_uuid(*vm.as_uuid()))
        {
            return Err(ManagerError::VmTaken { vm });
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
            }
            .into()),
            // Nobody has anything in it: a launcher removes the folder that it had set up when it
            // cannot start the VM.
            _ if never_ran(&record) => Ok(Place::Vanished(id)),
            Vanished::Keep => Err(FolderError::Kept {
                path: path(),
                vrot: id,
            }
            .into()),
            Vanished::Delete => Ok(Place::Vanished(id)),
        }
    }

    /// Stops a vRoT that runs without a VMM, for a process that has gone.
    pub(super) async fn leave_folder(self: &Arc<Self>, vrot: &Vrot) -> Result<(), ManagerError> {
        let record = vrot.record();
        if record.lifecycle.is_running() {
            check_is_left(vrot).await?;
            self.stop(record.vrot.into()).await?;
        }
        Ok(())
    }

    /// Starts the vRoT of a folder for which a new process stands. One that runs without a VMM is of a
    /// process that has gone: it is stopped before. A launch that was announced for the VM is this one.
    pub async fn start_folder(
        self: &Arc<Self>,
        presented: &Presented,
    ) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.bind_folder(presented).await?;
        let key = presented.vrot.into();
        self.leave_folder(&vrot).await?;
        let vm = vrot.record().vm;
        let announced = self.announced_launch(vm);
        let launch = announced.as_ref().map(|waiting| waiting.launch.clone());
        let started = self.go_on(key, launch).await.map_err(|error| match error {
            ManagerError::LaunchNotMeasured { vm } => ManagerError::LaunchNotAnnounced { vm },
            other => other,
        })?;
        // One that was not started may be tried again.
        if let Some(used) = announced {
            self.announced_launch_used(vm, &used);
        }
        Ok(started)
    }

    /// The vRoT of a folder for which the same process stands as before the manager was restarted.
    pub fn rejoin_folder(&self, presented: &Presented) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.of_folder(presented)?;
        if let Some(Adoption::Waiting) = vrot.adoption() {
            let vrot = presented.vrot;
            return Err(ManagerError::BeingTakenOver { vrot });
        }
        match vrot.record().lifecycle.is_running() {
            true => Ok(vrot),
            false => Err(FolderError::NotRunning.into()),
        }
    }
}
