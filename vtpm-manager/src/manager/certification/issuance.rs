//! First certificates, issued beside a guest.
//!
//! A launch waits for no signature of the physical TPM. Until a vRoT's certificates are there, its
//! record has none, the indices in its TPM have no content, and requests for evidence wait. A task
//! for each running vRoT with a pending certificate has it signed, writes it into its index beside
//! the guest, and commits the record. The vIK's certificate comes first, for attestation takes that
//! alone. That of the TLS key comes next, when no vIK waits, and those of the endorsement keys follow
//! when the physical TPM has nothing more urgent to do. Of many vRoTs, those come first whose evidence was
//! asked for, their TLS keys too, and then those with a VM.
//!
//! What a certificate says is read from the record when it is ordered, and held against the record
//! again, under the vRoT's gate, before it is written. A manager that ends in between leaves the
//! record as it was: its successor orders the certificate anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vrot_manufacture::check_ready;

use super::signing::Signed;
use super::turns::Need;
use super::{Certification, Work};
use crate::backend::Backend;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::{Pending, VrotRecord};

/// The task of one vRoT.
struct Task {
    certification: Arc<Certification>,
    vrot: Arc<Vrot>,
    work: Work,
}

/// What became of signed certificates.
enum Written {
    /// They are in the vRoT and in the store.
    Done,
    /// The vRoT is not what they were signed for any more, or does not run.
    Outdated,
    /// The guest's firmware has yet to start the TPM, or its VMM to resume it.
    NotYet,
    /// The manager ends.
    Ending,
}

/// Between looks at a vRoT whose guest has yet to start its TPM; doubled up to the longest.
const FIRST_CHECK: Duration = Duration::from_millis(25);
const LONGEST_CHECK: Duration = Duration::from_secs(2);
/// After a failure; doubled up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

impl Certification {
    /// Has the pending certificates of a running vRoT made, in a task of its own.
    pub(in crate::manager) fn issue_pending(self: &Arc<Self>, vrot: &Arc<Vrot>) {
        let record = vrot.record();
        if record.identity.pending().is_none() || !record.lifecycle.is_running() {
            return;
        }
        if let Some(work) = self.issuing.begin(record.vrot) {
            let task = Task {
                certification: Arc::clone(self),
                vrot: Arc::clone(vrot),
                work,
            };
            self.background.spawn(task.run());
        }
    }

    /// Writes signed certificates beside the guest and commits them.
    async fn write_beside_guest(
        &self,
        vrot: &Vrot,
        signed: &Signed,
    ) -> Result<Written, ManagerError> {
        let waited = async {
            let used = self.signatures.backends.acquire().await;
            (used, vrot.gate.lock().await)
        };
        // From here on, it is done to its end.
        let Some((_use, _gate)) = self.background.unless_ended(waited).await else {
            return Ok(Written::Ending);
        };
        let before = vrot.record();
        let is_for = before.lifecycle.is_running() && signed.is_for(&before);
        let Some(backend) = vrot.backend().filter(|_| is_for) else {
            return Ok(Written::Outdated);
        };
        let mut channel = backend.channel();
        let ready = blocking(move || check_ready(&mut channel)).await?;
        if let Err(error) = ready.map_err(ManagerError::Manufacture) {
            return match error.is_not_ready() {
                true => Ok(Written::NotYet),
                false => Err(error),
            };
        }
        let mut record = vrot.record_to_change();
        signed.enter(&mut record);
        self.guarded.record(signed.event(record.vrot)).await?;
        let written = match self.write(signed, &record, &backend).await {
            Ok(()) => self.guarded.commit(record.to_batch()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            // The line above tells of a certificate that the store does not have.
            self.guarded
                .record_as_it_was(before.vrot, Some(&before))
                .await;
            return match error.is_not_ready() {
                true => Ok(Written::NotYet),
                false => Err(error),
            };
        }
        vrot.set_record(record);
        Ok(Written::Done)
    }
}

impl Task {
    async fn run(self) {
        let certification = &self.certification;
        let mut retry = FIRST_RETRY;
        loop {
            let goes_on = match self.step().await {
                Ok(Written::Done) => {
                    retry = FIRST_RETRY;
                    certification.failures.forget(self.work.vrot);
                    true
                }
                Ok(Written::Outdated) if self.pending().is_some() => {
                    certification.background.pause(FIRST_CHECK).await
                }
                Ok(_) => false,
                Err(error) => {
                    certification.note_failure(self.work.vrot, &error).await;
                    let goes_on = certification.background.pause(retry).await;
                    retry = retry.saturating_mul(2).min(LONGEST_RETRY);
                    goes_on
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// What is pending for a vRoT that runs.
    fn pending(&self) -> Option<(Arc<VrotRecord>, Pending, Arc<Backend>)> {
        let record = Some(self.vrot.record()).filter(|record| record.lifecycle.is_running())?;
        let pending = record.identity.pending()?;
        Some((record, pending, self.vrot.backend()?))
    }

    /// Signs what is pending, and writes it when the guest's TPM is ready for it.
    async fn step(&self) -> Result<Written, ManagerError> {
        let Some((record, pending, backend)) = self.pending() else {
            return Ok(Written::Outdated);
        };
        let certification = &self.certification;
        let background = &certification.background;
        let mut check = FIRST_CHECK;
        let signed = loop {
            // When the manager ends, the signature is not waited for.
            let vrot = Arc::clone(&self.vrot);
            let signed = certification.sign(&record, pending, &backend, move || Need::of(&vrot));
            let signed = background.unless_ended(signed);
            match signed.await {
                None => return Ok(Written::Ending),
                Some(Err(error)) if error.is_not_ready() => {}
                Some(signed) => break signed?,
            }
            if !background.pause(check).await {
                return Ok(Written::Ending);
            }
            check = check.saturating_mul(2).min(LONGEST_CHECK);
        };
        loop {
            match certification
                .write_beside_guest(&self.vrot, &signed)
                .await?
            {
                Written::NotYet => {}
                Written::Done if pending == Pending::Vik => {
                    certification.issued.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(vrot = %self.work.vrot, "its identity key is certified");
                    return Ok(Written::Done);
                }
                written => return Ok(written),
            }
            if !background.pause(check).await {
                return Ok(Written::Ending);
            }
            check = check.saturating_mul(2).min(LONGEST_CHECK);
        }
    }
}
