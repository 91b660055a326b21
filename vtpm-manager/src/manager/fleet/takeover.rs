//! What a manager finds when its store is opened: backends that run, deletions that are not finished,
//! vRoTs whose backends are gone.

use std::sync::Arc;
use std::time::Duration;

use api_types::WithCauses;
use cert_chain::VrotId;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Fleet;
use super::endings::End;
use crate::audit::Event;
use crate::backend::{Backend, BackendError, NextTurn, Role, RuntimeFolder, Turns};
use crate::manager::error::ManagerError;
use crate::manager::registry::{Adoption, Vrot};
use crate::vrot::Lifecycle;

/// A backend that is found running answers between two TPM commands. The manager does not wait
/// for longer before it serves its callers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// It may be at an RSA key, on a busy machine.
const LONGEST_ANSWER: Duration = Duration::from_secs(60);

/// What became of the backend in a folder.
enum TakenOver {
    Adopted,
    Dead,
    OtherVersion(BackendError),
}

impl Fleet {
    /// Reads the records and takes over what is in the store. Backends that are still running come
    /// first, because guests wait; what is only written down is done meanwhile.
    pub(in crate::manager) async fn take_over(self: &Arc<Self>) -> Result<(), ManagerError> {
        let found = self.guarded.stored().await?;
        for record in found.living.values() {
            if !matches!(record.lifecycle, Lifecycle::Manufactured { .. }) {
                self.registry.insert(record.clone());
            }
        }
        self.tell_of_boot();
        let adoptions = self.begin_adoptions()?;
        self.guarded.take_over_deletions(found.tombstones).await?;
        self.guarded.record_differences(&found.living).await?;
        // From here on, lines about ends come after the comparison.
        self.compared.cancel();
        self.finish_adoptions(adoptions).await;
        // What the store calls running and has no folder was ended by the end of the host, or
        // while no manager ran: it is not started again by itself, as its VM is not there either.
        for vrot in self.registry.all() {
            let record = vrot.record();
            if record.lifecycle.is_running()
                && vrot.backend().is_none()
                && vrot.adoption().is_none()
            {
                let vrot = record.vrot;
                let mut end = End::noticed(vrot, None, "no backend of it was found");
                if let Err(error) = self.note_end(&mut end).await {
                    tracing::error!(%vrot, %error, "its end is not recorded yet");
                    let fleet = Arc::clone(self);
                    self.background
                        .spawn(async move { end.record_at_last(&fleet).await });
                }
            }
        }
        for vrot in self.registry.all() {
            let is_over = !vrot.record().lifecycle.is_running();
            if is_over && vrot.adoption().is_none() {
                let _gate = vrot.gate.lock().await;
                self.try_to_record_loss(&vrot).await;
            }
        }
        // Last: what failed on the way is done again.
        let manufactured = (found.living.into_values())
            .filter(|record| matches!(record.lifecycle, Lifecycle::Manufactured { .. }));
        manufactured.for_each(|record| self.factory.found(record));
        Ok(())
    }

    /// All at once, but for those that have state to hand over: they take [`Turns`]. What is not
    /// adopted waits for the comparison with the audit log.
    fn begin_adoptions(self: &Arc<Self>) -> Result<mpsc::UnboundedReceiver<VrotId>, ManagerError> {
        let (adopted, adoptions) = mpsc::unbounded_channel();
        let (turns, folders) = Turns::of(self.folders.in_use()?);
        self.background.until_the_end(turns.give());
        for (folder, turn) in folders {
            let known = self.registry.find_vrot(folder.vrot());
            let is_done = |vrot: &Arc<Vrot>| vrot.backend().is_some() || vrot.adoption().is_some();
            if known.as_ref().is_some_and(is_done) {
                continue;
            }
            if let Some(vrot) = &known {
                vrot.set_adoption(Some(Adoption::Waiting));
            }
            let (fleet, adopted) = (Arc::clone(self), adopted.clone());
            self.background
                .spawn(async move { fleet.settle(folder, turn, known, adopted).await });
        }
        Ok(adoptions)
    }

    /// Waits no longer than a backend that is well needs: the others are waited for in the
    /// background, each by itself.
    async fn finish_adoptions(&self, mut adoptions: mpsc::UnboundedReceiver<VrotId>) {
        let mut events = Vec::new();
        let all = async {
            while let Some(vrot) = adoptions.recv().await {
                events.push(Event::BackendAdopted { vrot });
            }
        };
        if timeout(ANSWER_TIMEOUT, all).await.is_err() {
            tracing::warn!("not every backend has answered: the others are waited for meanwhile");
        }
        // Whatever is adopted from now on is recorded by itself.
        adoptions.close();
        while let Ok(vrot) = adoptions.try_recv() {
            events.push(Event::BackendAdopted { vrot });
        }
        // In one write: a line each would cost a thousand of them on a full host.
        if !events.is_empty() {
            self.guarded.record_or_keep(events).await;
        }
    }

    /// Takes over what lives in a folder, or ends it: left alone, it would serve a guest while
    /// another instance of the same vRoT is started.
    async fn settle(
        self: &Arc<Self>,
        folder: RuntimeFolder,
        turn: NextTurn,
        known: Option<Arc<Vrot>>,
        adopted: mpsc::UnboundedSender<VrotId>,
    ) {
        let id = folder.vrot();
        let running = known
            .clone()
            .filter(|vrot| vrot.record().lifecycle.is_running());
        let Some(vrot) = running else {
            drop(turn);
            if !self.is_compared().await {
                return;
            }
            // Left from a creation, a start or a stop that never came to its end.
            tracing::warn!(vrot = %id, "a backend that nobody knows is ended");
            if let Err(error) = self.end_leftover(&folder, known.as_deref()).await {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "it may still be there, or its last state is lost");
            }
            if let Some(vrot) = known {
                let _gate = vrot.gate.lock().await;
                self.try_to_record_loss(&vrot).await;
                vrot.set_adoption(None);
            }
            return;
        };
        // One that does not answer is left to the next manager.
        let taken_over = async {
            let turn = turn.taken().await;
            (turn, self.take_over_backend(&vrot, &folder).await)
        };
        let Some((turn, taken_over)) = self.background.unless_ended(taken_over).await else {
            return;
        };
        if !matches!(taken_over, Ok(TakenOver::Adopted)) && !self.is_compared().await {
            return;
        }
        let reason = match taken_over {
            Ok(TakenOver::Adopted) => {
                vrot.set_adoption(None);
                tracing::info!(vrot = %id, "adopted");
                if adopted.send(id).is_err() {
                    let adopted = vec![Event::BackendAdopted { vrot: id }];
                    self.guarded.record_or_keep(adopted).await;
                }
                if let (Some(turn), Some(backend)) = (turn, vrot.backend()) {
                    turn.over_when(backend.caught_up()).await;
                }
                // A line about a certificate comes after those of what was found.
                if self.is_compared().await {
                    self.certification.issue_pending(&vrot);
                }
                return;
            }
            Ok(TakenOver::OtherVersion(error)) => {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "a backend is left alone");
                vrot.set_adoption(Some(Adoption::OtherVersion));
                return;
            }
            Ok(TakenOver::Dead) => "it had ended when the manager started".to_owned(),
            Err(error) => {
                tracing::error!(vrot = %id, error = %WithCauses(&error), "a backend that cannot be taken over is ended");
                // If it comes to itself meanwhile, its state is kept.
                if let Err(error) = self.dismiss(id, Some(vrot.record().generation)).await {
                    tracing::error!(vrot = %id, error = %WithCauses(&error), "it may still be there, or its last state is lost");
                }
                WithCauses(&error).to_string()
            }
        };
        vrot.set_adoption(None);
        // It died while its host lived: its VM may be there still.
        let end = End::noticed(id, None, &reason);
        end.record_and_start_again(self).await;
    }

    async fn take_over_backend(
        &self,
        vrot: &Vrot,
        folder: &RuntimeFolder,
    ) -> Result<TakenOver, ManagerError> {
        let record = vrot.record();
        let role = Role::Guest(self.guest_role(&record, vrot.certified())?);
        match (self.launcher).adopt(&record, role, LONGEST_ANSWER).await {
            Ok(Some(backend)) => {
                self.observe(vrot, &backend);
                vrot.set_backend(Some(backend));
                Ok(TakenOver::Adopted)
            }
            Ok(None) => {
                folder.remove()?;
                Ok(TakenOver::Dead)
            }
            Err(error) if error.is_of_another_version() => Ok(TakenOver::OtherVersion(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a backend whose vRoT does not run by the store's word. What its guest did after that is
    /// kept, but not beside a volatile state that was put aside before.
    async fn end_leftover(
        &self,
        folder: &RuntimeFolder,
        known: Option<&Vrot>,
    ) -> Result<(), ManagerError> {
        let Some(record) = known.map(Vrot::record) else {
            Backend::dismiss(folder, None).await?;
            return Ok(folder.forget_loss()?);
        };
        let is_suspended = matches!(record.lifecycle, Lifecycle::Suspended { .. });
        let generation = (!is_suspended).then_some(record.generation);
        self.dismiss(record.vrot, generation).await
    }

    /// Waits until the audit log was held against the store; whether that comes before the manager
    /// ends.
    async fn is_compared(&self) -> bool {
        let compared = self.background.unless_ended(self.compared.cancelled());
        compared.await.is_some()
    }
}
