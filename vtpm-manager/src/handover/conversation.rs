//! One connection: a set-up, or the life of a vRoT for which the program at the other end stands.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use api_types::WithCauses;
use backend_link::transport::Transport;
use cert_chain::{HashAlgorithm, VmId, VrotId};
use foreign_descriptors::Foreign;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vrot_handover::folder_file::FolderFile;
use vrot_handover::message::{FromManager, Lock, Named, ToManager, Wanted};

use super::Handover;
use super::claims::Claim;
use super::presented::{self, PresentedError};
use super::socket::Connection;
use crate::api::order::transition;
use crate::manager::{FolderError, FolderOrder, ManagerError, Presented, Vrot};

/// A program that hands over.
pub(super) struct Conversation {
    handover: Arc<Handover>,
    connection: Connection,
    uid: u32,
    /// Kept also by a thread that looks at what came, for as long as that keeps it waiting.
    beginning: Option<Arc<OwnedSemaphorePermit>>,
    /// Whether its vRoT ran before this manager: nothing that passes ends the program.
    rejoins: bool,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Manager(#[from] ManagerError),
    #[error(transparent)]
    Presented(#[from] PresentedError),
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    #[error("the program did not go on in time")]
    Late,
    #[error("the program said something that is not expected here")]
    Unexpected,
    #[error("this host is not enrolled: `vtpmctl host enrol` comes first")]
    NotEnrolled,
    #[error("the folder `{path}` is being set up at this moment")]
    Busy { path: String },
    #[error("the system gives no random numbers")]
    NoRandomNumbers,
    #[error("another process stands for vRoT {vrot}: end that swtpm first")]
    Attended { vrot: VrotId },
}

/// A program says at once what it wants, and a disk takes a small file in less.
const PATIENCE: Duration = Duration::from_secs(10);
/// A process that was killed just now is still being noticed, and its vRoT stopped.
const PREDECESSOR: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

impl Conversation {
    pub(super) fn new(
        handover: Arc<Handover>,
        connection: Connection,
        uid: u32,
        beginning: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            handover,
            connection,
            uid,
            beginning: Some(Arc::new(beginning)),
            rejoins: false,
        }
    }

    /// Leads it to its end.
    pub(super) async fn lead(mut self, ending: CancellationToken) {
        let answered = self.answer(&ending).await;
        let answer = match answered {
            Ok(()) => return,
            Err(failure) => self.refusal(failure).await,
        };
        // Who does not take it has gone.
        let _ = timeout(PATIENCE, self.connection.send(&answer, None)).await;
    }

    /// Whether the same may succeed in a moment, without anybody's doing. To a process whose vRoT ran
    /// before, that is so of all but what is said of its folder.
    fn is_waited_for(&self, error: &ManagerError) -> bool {
        match error {
            ManagerError::StoreOpening | ManagerError::BeingTakenOver { .. } => true,
            ManagerError::LaunchersFolder(_) => false,
            _ => self.rejoins,
        }
    }

    async fn refusal(&self, failure: Failure) -> FromManager {
        let reason = WithCauses(&failure).to_string();
        match &failure {
            Failure::Manager(ManagerError::LaunchersFolder(FolderError::NotRunning)) => {
                FromManager::Ended { reason }
            }
            Failure::Manager(error) if self.is_waited_for(error) => FromManager::NotYet { reason },
            Failure::Attended { .. } if self.rejoins => FromManager::NotYet { reason },
            Failure::Connection(_) | Failure::Late => {
                tracing::debug!(reason, uid = self.uid, "a program that handed over is left");
                FromManager::Refused { reason }
            }
            _ => {
                (self.handover)
                    .record_refusal(Some(self.uid), "vRoT of a folder", &reason)
                    .await;
                FromManager::Refused { reason }
            }
        }
    }

    async fn answer(&mut self, ending: &CancellationToken) -> Result<(), Failure> {
        let Some((message, descriptor)) = self.hear().await? else {
            return Ok(());
        };
        self.rejoins = matches!(message, ToManager::Rejoin { .. });
        let ready = self.handover.manager.ready().await;
        ready?;
        match message {
            ToManager::SetUp { wanted, lock } => {
                let uid = self.uid;
                let look = move |descriptor| presented::folder(descriptor, uid);
                let path = self.looked_at(descriptor, look).await?;
                self.set_up(path, wanted, lock, None).await
            }
            ToManager::Replace { wanted, lock } => {
                let old = self.presented(descriptor, lock).await?;
                let path = old.path.clone();
                self.set_up(path, wanted, lock, Some(old)).await
            }
            ToManager::Check { lock } => {
                let file = self.presented(descriptor, lock).await?;
                let vrot = self.handover.manager.fleet().of_folder(&file)?;
                self.say(&FromManager::Known(named(&vrot))).await
            }
            ToManager::Start { lock } => {
                let file = self.presented(descriptor, lock).await?;
                let claim = self.claim_in_turn(file.vrot).await?;
                // The claim lasts as long as the order, which goes on where nobody waits for it.
                let started = transition(&self.handover.manager, |manager| async move {
                    Ok((manager.fleet().start_folder(&file).await, claim))
                });
                let (started, claim) = started.await?;
                self.stand_for(started?, claim, ending).await
            }
            ToManager::ActivateBanks { banks, lock } => {
                let banks = banks.into_iter().map(HashAlgorithm::from_identifier);
                let banks: Option<Vec<_>> = banks.collect();
                let banks = banks.filter(|banks| !banks.is_empty());
                let banks = banks.ok_or(Failure::Unexpected)?;
                let file = self.presented(descriptor, lock).await?;
                let claim = self.claim_in_turn(file.vrot).await?;
                let activated = transition(&self.handover.manager, |manager| async move {
                    let fleet = manager.fleet();
                    Ok((fleet.activate_folder_banks(&file, banks).await, claim))
                });
                let (activated, claim) = activated.await?;
                drop(claim);
                let vrot = activated?;
                self.say(&FromManager::Known(named(&vrot))).await
            }
            ToManager::Rejoin { lock } => {
                let file = self.presented(descriptor, lock).await?;
                let vrot = self.handover.manager.fleet().rejoin_folder(&file)?;
                let claim = self.handover.attended.claim(file.vrot);
                let claim = claim.ok_or(Failure::Attended { vrot: file.vrot })?;
                self.stand_for(vrot, claim, ending).await
            }
            ToManager::Written | ToManager::Attach | ToManager::Stop => Err(Failure::Unexpected),
        }
    }

    /// The next message; none when the other end is gone.
    async fn hear(&self) -> Result<Option<(ToManager, Option<Foreign>)>, Failure> {
        let packet = timeout(PATIENCE, self.connection.receive()).await;
        let Some(packet) = packet.map_err(|_| Failure::Late)?? else {
            return Ok(None);
        };
        Ok(Some((packet.message()?, packet.descriptor)))
    }

    async fn say(&self, message: &FromManager) -> Result<(), Failure> {
        let sent = timeout(PATIENCE, self.connection.send(message, None)).await;
        Ok(sent.map_err(|_| Failure::Late)??)
    }

    /// The folder's file that came.
    async fn presented(
        &self,
        descriptor: Option<Foreign>,
        lock: Option<Lock>,
    ) -> Result<Presented, Failure> {
        let uid = self.uid;
        let look = move |descriptor| presented::file(descriptor, lock, uid);
        self.looked_at(descriptor, look).await
    }

    /// On a thread of its own, where looking and closing may block for as long as they do: the file
    /// system is the caller's. There are as many of them as there are places.
    async fn looked_at<T: Send + 'static>(
        &self,
        descriptor: Option<Foreign>,
        look: impl FnOnce(Option<OwnedFd>) -> Result<T, PresentedError> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.beginning.clone();
        let (done, looked) = oneshot::channel();
        let thread = thread::Builder::new().name("look".to_owned());
        thread.spawn(move || {
            // Whoever asked may have gone.
            let _ = done.send(look(descriptor.map(Foreign::into_inner)));
            drop(place);
        })?;
        let looked = timeout(PATIENCE, looked).await;
        Ok(looked
            .map_err(|_| Failure::Late)?
            .map_err(io::Error::other)??)
    }

    /// Makes a vRoT, and hears that the folder has its file. An order for it that goes on where nobody
    /// waits any more holds the claim on the folder meanwhile.
    async fn set_up(
        &self,
        path: String,
        wanted: Wanted,
        lock: Option<Lock>,
        old: Option<Presented>,
    ) -> Result<(), Failure> {
        let handover = &self.handover;
        let claim = handover.folders.claim((self.uid, path.clone()));
        let claim = claim.ok_or_else(|| Failure::Busy { path: path.clone() })?;
        let enrolment = handover.manager.host().enrolment();
        let host = enrolment.ok_or(Failure::NotEnrolled)?.host().to_string();
        let token = token()?;
        let swtpm = &handover.manager.config().swtpm;
        let order = FolderOrder {
            path,
            uid: self.uid,
            vm: wanted.vm.map(|vm| VmId::from_uuid(Uuid::from_bytes(*vm))),
            // Names of VMs that are none of ours have no other use than to be read.
            name: wanted.name.and_then(|name| name.parse().ok()),
            tenant: swtpm.tenant.clone(),
            token: presented::digest(&token, lock),
            unasked: wanted.unasked,
            vanished: swtpm.vanished,
        };
        let made = transition(&handover.manager, |manager| async move {
            let fleet = manager.fleet();
            let made = match old {
                Some(old) => fleet.replace_folder(&old, order).await,
                None => fleet.set_up_folder(order).await,
            };
            Ok((made, claim))
        });
        let (made, claim) = made.await?;
        let record = made?.record();
        let (id, vm) = (*record.vrot.as_uuid(), *record.vm.as_uuid());
        let file = FolderFile::new(host, id, vm, token).to_bytes();
        self.say(&FromManager::Made { file: file.into() }).await?;
        let Some((ToManager::Written, descriptor)) = self.hear().await? else {
            return Err(Failure::Unexpected);
        };
        let written = self.presented(descriptor, lock).await?;
        let bound = transition(&handover.manager, |manager| async move {
            let bound = manager.fleet().bind_folder(&written).await;
            drop(claim);
            Ok(bound)
        });
        let vrot = bound.await??;
        self.say(&FromManager::Known(named(&vrot))).await
    }

    /// The claim on a vRoT, once the process that stood for it is seen to be gone.
    async fn claim_in_turn(&self, vrot: VrotId) -> Result<Claim<VrotId>, Failure> {
        let deadline = Instant::now() + PREDECESSOR;
        loop {
            if let Some(claim) = self.handover.attended.claim(vrot) {
                return Ok(claim);
            }
            if Instant::now() >= deadline {
                return Err(Failure::Attended { vrot });
            }
            sleep(PAUSE).await;
        }
    }

    /// As long as the process is there, the vRoT runs; and the other way round.
    async fn stand_for(
        &mut self,
        vrot: Arc<Vrot>,
        claim: Claim<VrotId>,
        ending: &CancellationToken,
    ) -> Result<(), Failure> {
        self.beginning = None;
        let over = vrot.over();
        tokio::pin!(over);
        if self.say(&FromManager::Started(named(&vrot))).await.is_err() {
            self.stop(&vrot).await;
            return Ok(());
        }
        loop {
            tokio::select! {
                heard = self.connection.receive() => {
                    let heard = heard.ok().flatten();
                    let heard = heard.filter(|packet| packet.descriptor.is_none());
                    match heard.and_then(|packet| packet.message().ok()) {
                        Some(ToManager::Attach) => {
                            if self.attach(&vrot).await.is_err() {
                                break;
                            }
                        }
                        Some(ToManager::Stop) => {
                            self.stop(&vrot).await;
                            drop(claim);
                            return self.say(&FromManager::Stopped).await;
                        }
                        // It has gone, or talks nonsense: nobody stands for the vRoT.
                        Some(_) | None => break,
                    }
                }
                () = &mut over => {
                    drop(claim);
                    let reason = "its backend has ended, or it was stopped on another order";
                    let reason = reason.to_owned();
                    return self.say(&FromManager::Ended { reason }).await;
                }
                // The vRoT goes on, and the process looks for the next manager.
                () = ending.cancelled() => return Ok(()),
            }
        }
        self.stop(&vrot).await;
        Ok(())
    }

    /// Gives the VMM at the other end a connection to the backend.
    async fn attach(&self, vrot: &Vrot) -> Result<(), Failure> {
        let control = self.handover.manager.fleet().folder(vrot.record().vrot);
        let connected = UnixStream::connect(control.vmm_socket(Transport::Emulator)).await;
        match connected.and_then(UnixStream::into_std) {
            Ok(stream) => {
                let message = FromManager::Attached;
                let sending = self.connection.send(&message, Some(stream.as_fd()));
                Ok(timeout(PATIENCE, sending)
                    .await
                    .map_err(|_| Failure::Late)??)
            }
            Err(error) => {
                let reason = format!("the vRoT cannot be reached: {error}");
                self.say(&FromManager::Refused { reason }).await
            }
        }
    }

    async fn stop(&self, vrot: &Vrot) {
        let id = vrot.record().vrot;
        if !vrot.record().lifecycle.is_running() {
            return;
        }
        let stopped = transition(&self.handover.manager, move |manager| async move {
            manager.fleet().stop(id.into()).await
        });
        if let Err(error) = stopped.await {
            let error = WithCauses(&error);
            tracing::error!(vrot = %id, %error, "it is not stopped, though its process has gone");
        }
    }
}

/// 32 random bytes in hexadecimal.
fn token() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Failure::NoRandomNumbers)?;
    Ok(hex::encode(bytes))
}

fn named(vrot: &Vrot) -> Named {
    let record = vrot.record();
    Named {
        vrot: (*record.vrot.as_bytes()).into(),
        vm: (*record.vm.as_uuid().as_bytes()).into(),
    }
}
