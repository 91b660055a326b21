//! First certificates, made beside the launch.
//!
//! A launch waits for no signature of the physical TPM. Until a vRoT's certificates are there, its
//! record has none, the indices in its TPM have no content, and requests for evidence wait. A task
//! for each running vRoT with a pending certificate has it signed, writes it into its index beside
//! the guest, and commits the record. The vIK's certificate comes first, for attestation takes that
//! alone. That of the TLS key comes next, when no vIK waits, and those of the endorsement keys follow
//! when the physical TPM has nothing more urgent to do.
//!
//! What a certificate says is read from the record when it is ordered, and held against the record
//! again, under the vRoT's gate, before it is written. A manager that ends in between leaves the
//! record as it was: its successor orders the certificate anew.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::layout::NvIndex;
use cert_chain::{Digest32, VrotId};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use vrot_manufacture::{
    CertifiedSubject, Chain, ManufactureError, Uncertified, check_ready, device, issue_eks,
    issue_tls, issue_vik, withdraw, write_certificates,
};

use super::renewal::{Turn, is_not_ready};
use super::restoration::nv_authority;
use crate::audit::Event;
use crate::backend::Backend;
use crate::keys::Keyring;
use crate::manager::{Manager, ManagerError, Vrot, blocking};
use crate::vrot::{Lifecycle, Pending, VrotRecord};

/// Certificates that are being issued for the first time.
#[derive(Debug)]
pub struct Issuance {
    /// The vRoTs that have a task.
    vrots: Mutex<BTreeSet<VrotId>>,
    /// The physical TPM signs one thing at a time: one waits for its turn while another is signed,
    /// and the store's own commands never stand behind more than these.
    vik_signatures: Semaphore,
    tls_signatures: Semaphore,
    ek_signatures: Semaphore,
    /// Each use of a backend takes a thread, for as long as one that hangs does not answer.
    backends: Semaphore,
    issued: AtomicU64,
}

/// The task of one vRoT. Over when dropped.
struct Task {
    manager: Arc<Manager>,
    vrot: Arc<Vrot>,
    id: VrotId,
}

/// Certificates that are signed, and not in the vRoT yet.
struct Signed {
    pending: Pending,
    subject: CertifiedSubject,
    host_certificate: Vec<u8>,
    manager: Digest32,
    backend: Digest32,
    at: Timestamp,
    certificates: Vec<(NvIndex, CertificateDer<'static>)>,
}

/// What became of signed certificates.
enum Placed {
    /// They are in the vRoT and in the store.
    Done,
    /// The vRoT is not what they were signed for any more, or does not run.
    Outdated,
    /// The guest's firmware has yet to start the TPM, or its VMM to resume it.
    NotYet,
    /// The manager ends.
    Closed,
}

const VIK_SIGNATURES: usize = 2;
const TLS_SIGNATURES: usize = 2;
const EK_SIGNATURES: usize = 1;
const BACKENDS: usize = 32;
/// Between looks at a vRoT whose guest has yet to start its TPM; doubled up to the longest.
const FIRST_LOOK: Duration = Duration::from_millis(25);
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// After a failure; doubled up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

impl Default for Issuance {
    fn default() -> Self {
        Self {
            vrots: Mutex::default(),
            vik_signatures: Semaphore::new(VIK_SIGNATURES),
            tls_signatures: Semaphore::new(TLS_SIGNATURES),
            ek_signatures: Semaphore::new(EK_SIGNATURES),
            backends: Semaphore::new(BACKENDS),
            issued: AtomicU64::new(0),
        }
    }
}

impl Issuance {
    /// How many identity keys got their first certificate beside a launch since the manager
    /// started.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    fn vrots(&self) -> MutexGuard<'_, BTreeSet<VrotId>> {
        self.vrots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.manager.issuance.vrots().remove(&self.id);
    }
}

impl Manager {
    /// Certificates that are being issued for the first time.
    pub fn issuance(&self) -> &Issuance {
        &self.issuance
    }

    /// Has the pending certificates of a running vRoT made, in a task of its own.
    pub(in crate::manager) fn issue_pending(self: &Arc<Self>, vrot: &Arc<Vrot>) {
        let record = vrot.record();
        if record.identity.pending().is_none() || !is_running(&record) {
            return;
        }
        if self.issuance.vrots().insert(record.vrot) {
            let task = Task {
                manager: Arc::clone(self),
                vrot: Arc::clone(vrot),
                id: record.vrot,
            };
            self.tasks.spawn(task.run());
        }
    }

    /// Signs what is pending for a vRoT that no guest uses yet, and writes it. The record is
    /// changed, but not committed.
    pub(in crate::manager) async fn issue_at_once(
        &self,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        while let Some(pending) = record.identity.pending() {
            let signed = self.sign(record, pending, backend).await?;
            write(&signed, record, keyring, backend).await?;
            signed.enter(record);
        }
        Ok(())
    }

    /// Makes sure, before there is a guest, that the indices of pending certificates have room for
    /// what this record leads to, and no content: a certificate with another VM's number must not
    /// be found there.
    pub(in crate::manager) async fn withdraw_pending(
        &self,
        record: &VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        chain: Chain,
    ) -> Result<(), ManagerError> {
        let (vrot, identity) = (record.vrot, &record.identity);
        let host_certificate = &identity.host_certificate;
        let order = self.order(record.subject(), host_certificate, Timestamp::now());
        let order = order.await?;
        let authority = nv_authority(keyring, record)?;
        let uncertified = identity.uncertified(vrot)?;
        let mut channel = backend.channel();
        let withdrawn =
            blocking(move || withdraw(&order, &uncertified, &authority, &mut channel, chain));
        withdrawn.await?.map_err(ManagerError::Manufacture)
    }

    /// The same at a start, for certificates under the host's present certificate. A vRoT in which
    /// that fails is started all the same, and the failure is shown.
    pub(in crate::manager) async fn reserve_pending(
        &self,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
    ) {
        let Some(pending) = record.identity.pending() else {
            return;
        };
        let mut chain = Chain::Same;
        // A certificate that the vIK has was issued under the one that is there.
        if pending == Pending::Vik
            && let Some(enrolment) = self.host.enrolment()
            && enrolment.certificate.der()[..] != record.identity.host_certificate[..]
        {
            record.identity.host_certificate = enrolment.certificate.der().to_vec().into();
            chain = Chain::Changed;
        }
        let withdrawn = self.withdraw_pending(record, keyring, backend, chain);
        if let Err(error) = withdrawn.await {
            self.note_failure(record.vrot, &error).await;
        }
    }

    async fn sign(
        &self,
        record: &VrotRecord,
        pending: Pending,
        backend: &Backend,
    ) -> Result<Signed, ManagerError> {
        let (vrot, identity) = (record.vrot, &record.identity);
        let (_, signer) = self.host.issuer().await?;
        let at = Timestamp::now();
        let subject = record.subject();
        let order = self
            .order(subject.clone(), &identity.host_certificate, at)
            .await?;
        let (manager, backend_digest) = (order.manager, order.backend);
        let host_certificate = order.host_certificate.clone();
        let failed = |error, signer: &_| ManagerError::of_manufacture(error, signer);
        let certificates = match identity.uncertified(vrot)? {
            Uncertified { vik: Some(vik), .. } => {
                let _turn = self.issuance.vik_signatures.acquire().await;
                blocking(move || {
                    let vik = issue_vik(&order, &vik, &signer);
                    let vik = vik.map_err(|error| failed(error, &signer))?;
                    Ok::<_, ManagerError>(vec![(NvIndex::VIK_CERTIFICATE, vik)])
                })
                .await??
            }
            Uncertified { tls: Some(key), .. } => {
                let _turn = self.issuance.tls_signatures.acquire().await;
                let signer = signer.later();
                blocking(move || {
                    let tls = issue_tls(&order, &key, &signer);
                    let tls = tls.map_err(|error| failed(error, &signer))?;
                    Ok::<_, ManagerError>(vec![(NvIndex::TLS_CERTIFICATE, tls)])
                })
                .await??
            }
            Uncertified { eks: Some(eks), .. } => {
                let device = {
                    let _use = self.issuance.backends.acquire().await;
                    let mut channel = backend.channel();
                    blocking(move || device(&mut channel)).await?
                };
                let device = device.map_err(ManagerError::Manufacture)?;
                let _turn = self.issuance.ek_signatures.acquire().await;
                let signer = signer.in_background();
                blocking(move || {
                    let eks = issue_eks(&order, &eks, device, &signer);
                    let [rsa, p256] = eks.map_err(|error| failed(error, &signer))?;
                    Ok::<_, ManagerError>(vec![
                        (NvIndex::EK_RSA_CERTIFICATE, rsa),
                        (NvIndex::EK_P256_CERTIFICATE, p256),
                    ])
                })
                .await??
            }
            // Nothing is pending.
            _ => Vec::new(),
        };
        Ok(Signed {
            pending,
            subject,
            host_certificate,
            manager,
            backend: backend_digest,
            at,
            certificates,
        })
    }

    /// Writes signed certificates beside the guest and commits them.
    async fn place(self: &Arc<Self>, vrot: &Vrot, signed: &Signed) -> Result<Placed, ManagerError> {
        let _use = self.issuance.backends.acquire().await;
        let _gate = vrot.gate.lock().await;
        let before = vrot.record();
        let Some(backend) = vrot.backend().filter(|_| signed.is_for(&before)) else {
            return Ok(Placed::Outdated);
        };
        let Some(_turn) = Turn::take(self, before.vrot) else {
            return Ok(Placed::Closed);
        };
        let keyring = self.host.keyring().await?;
        let mut channel = backend.channel();
        let ready = blocking(move || check_ready(&mut channel)).await?;
        if let Err(error) = ready.map_err(ManagerError::Manufacture) {
            return match is_not_ready(&error) {
                true => Ok(Placed::NotYet),
                false => Err(error),
            };
        }
        let mut record = vrot.record_to_change();
        signed.enter(&mut record);
        self.record(signed.event(record.vrot)).await?;
        let placed = match write(signed, &record, &keyring, &backend).await {
            Ok(()) => self.commit_record(&record).await,
            Err(error) => Err(error),
        };
        if let Err(error) = placed {
            // The line above tells of a certificate that the store does not have.
            self.record_as_it_was(before.vrot, Some(&before)).await;
            return match is_not_ready(&error) {
                true => Ok(Placed::NotYet),
                false => Err(error),
            };
        }
        vrot.set_record(record);
        Ok(Placed::Done)
    }
}

impl Task {
    async fn run(self) {
        let mut retry = FIRST_RETRY;
        loop {
            match self.step().await {
                Ok(Placed::Done) => {
                    retry = FIRST_RETRY;
                    self.manager.renewals.no_failure(self.id);
                }
                Ok(Placed::Outdated) if self.pending().is_some() => {
                    if self.is_closed_after(FIRST_LOOK).await {
                        return;
                    }
                }
                Ok(_) => return,
                Err(error) => {
                    self.manager.note_failure(self.id, &error).await;
                    if self.is_closed_after(retry).await {
                        return;
                    }
                    retry = retry.saturating_mul(2).min(LONGEST_RETRY);
                }
            }
        }
    }

    /// What is pending for a vRoT that runs.
    fn pending(&self) -> Option<(Arc<VrotRecord>, Pending, Arc<Backend>)> {
        let record = Some(self.vrot.record()).filter(|record| is_running(record))?;
        let pending = record.identity.pending()?;
        Some((record, pending, self.vrot.backend()?))
    }

    /// Signs what is pending, and writes it when the guest's TPM is ready for it.
    async fn step(&self) -> Result<Placed, ManagerError> {
        let Some((record, pending, backend)) = self.pending() else {
            return Ok(Placed::Closed);
        };
        let mut look = FIRST_LOOK;
        let signed = loop {
            match self.manager.sign(&record, pending, &backend).await {
                Err(error) if is_not_ready(&error) => {}
                signed => break signed?,
            }
            if self.is_closed_after(look).await {
                return Ok(Placed::Closed);
            }
            look = look.saturating_mul(2).min(LONGEST_LOOK);
        };
        loop {
            match self.manager.place(&self.vrot, &signed).await? {
                Placed::NotYet => {}
                Placed::Done if pending == Pending::Vik => {
                    let issued = &self.manager.issuance.issued;
                    issued.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(vrot = %self.id, "its identity key is certified");
                    return Ok(Placed::Done);
                }
                placed => return Ok(placed),
            }
            if self.is_closed_after(look).await {
                return Ok(Placed::Closed);
            }
            look = look.saturating_mul(2).min(LONGEST_LOOK);
        }
    }

    /// Waits for so long, or until the manager ends; whether it does.
    async fn is_closed_after(&self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => false,
            () = self.manager.ending.cancelled() => true,
        }
    }
}

impl Signed {
    /// Whether they are pending for this vRoT, which runs, and say what its record says.
    fn is_for(&self, record: &VrotRecord) -> bool {
        is_running(record)
            && record.identity.pending() == Some(self.pending)
            && record.subject() == self.subject
            && record.identity.host_certificate[..] == self.host_certificate[..]
    }

    fn enter(&self, record: &mut VrotRecord) {
        let identity = &mut record.identity;
        for (index, certificate) in &self.certificates {
            let place = match *index {
                NvIndex::VIK_CERTIFICATE => {
                    identity.vik_issued_at = self.at;
                    &mut identity.vik_certificate
                }
                NvIndex::TLS_CERTIFICATE => &mut identity.tls_certificate,
                NvIndex::EK_RSA_CERTIFICATE => &mut identity.ek_rsa_certificate,
                _ => &mut identity.ek_p256_certificate,
            };
            *place = Some(certificate.to_vec().into());
        }
        if self.pending == Pending::Vik {
            identity.manager = self.manager;
            identity.backend = self.backend;
        }
    }

    /// The line about them.
    fn event(&self, vrot: VrotId) -> Event {
        let mut digests = (self.certificates.iter()).map(|(_, der)| Digest32::of(der));
        match (self.pending, digests.next(), digests.next()) {
            (Pending::Tls, Some(certificate), _) => Event::TlsKeyCertified { vrot, certificate },
            (Pending::Eks, Some(ek_rsa), Some(ek_p256)) => Event::EndorsementKeysCertified {
                vrot,
                ek_rsa,
                ek_p256,
            },
            (_, certificate, _) => Event::CertificateIssued { vrot, certificate },
        }
    }
}

fn is_running(record: &VrotRecord) -> bool {
    matches!(record.lifecycle, Lifecycle::Running { .. })
}

/// Writes certificates into a vRoT.
async fn write(
    signed: &Signed,
    record: &VrotRecord,
    keyring: &Keyring,
    backend: &Backend,
) -> Result<(), ManagerError> {
    let authority = nv_authority(keyring, record)?;
    let certificates = signed.certificates.clone();
    let mut channel = backend.channel();
    let written: Result<(), ManufactureError> =
        blocking(move || write_certificates(&certificates, &authority, &mut channel)).await?;
    written.map_err(ManagerError::Manufacture)
}
