//! New certificates for identity keys, while their VMs run.
//!
//! A certificate is renewed at half of its life at the latest. Renewals begin one after the other,
//! so that a host full of VMs started together does not keep the physical TPM from quoting; the
//! half of a life that is left is long enough for all of them, and for many attempts at each. Each
//! is a task of its own: a vRoT whose backend does not answer keeps the next from its turn for a
//! moment only.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api_types::{Timestamp, VrotKey, WithCauses};
use cert_chain::{Digest32, Validity, VrotId};
use minicbor::bytes::ByteVec;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tpm_wire::ResponseCode;
use vrot_manufacture::{
    Chain, Guest, ManufactureError, RederivedVik, Renewed, RenewedBesides, rederive_vik_from_copy,
    renew,
};

use super::restoration::nv_authority;
use crate::audit::Event;
use crate::backend::{Backend, Role, RuntimeFolder};
use crate::keys::Keyring;
use crate::manager::{Manager, ManagerError, Vrot, blocking};
use crate::vrot::{Identity, Lifecycle, VrotRecord};

/// How it stands with the renewal of certificates.
#[derive(Debug, Default)]
pub struct Renewals {
    turns: watch::Sender<Turns>,
    failing: Mutex<BTreeMap<VrotId, Failure>>,
    done: AtomicU64,
    failures: AtomicU64,
}

/// The renewals under way, and first certificates that are being written.
#[derive(Debug, Default)]
struct Turns {
    vrots: Vec<VrotId>,
    /// No other one begins.
    is_closed: bool,
}

/// One renewal under way. Over when dropped.
#[derive(Debug)]
pub(in crate::manager) struct Turn {
    manager: Arc<Manager>,
    vrot: VrotId,
}

/// The last attempt at a certificate, which failed.
#[derive(Debug)]
struct Failure {
    /// None, if the vRoT was only not ready for it.
    reason: Option<String>,
    attempts: u32,
    again: Instant,
}

/// When a certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::manager) enum CertificateStep {
    /// At a start, before the guest runs.
    Start,
    /// Beside the guest, which may hold every slot as well.
    Running,
}

/// Due certificates are looked for at least this often.
const INSPECTION: Duration = Duration::from_secs(60);
/// Between two renewals: room for the quotes of the physical TPM.
const PAUSE: Duration = Duration::from_millis(100);
/// Before the second attempt; doubled with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(10 * 60);
/// A manager that ends waits this long for the renewals under way.
const CLOSING: Duration = Duration::from_secs(3);
/// A renewal that takes longer goes on beside the next.
const PATIENCE: Duration = Duration::from_secs(5);
/// Each takes a thread while its backend does not answer.
const MOST_AT_A_TIME: usize = 32;

impl Renewals {
    /// How many certificates were renewed since the manager started.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many attempts failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How many vRoTs have a certificate that should be renewed, and could not be.
    pub fn overdue(&self) -> usize {
        let failing = self.failing();
        (failing.values())
            .filter(|failure| failure.reason.is_some())
            .count()
    }

    /// Why the last attempt for a vRoT failed, if it did.
    pub fn problem(&self, vrot: VrotId) -> Option<String> {
        let failing = self.failing();
        failing.get(&vrot)?.reason.clone()
    }

    /// Lets the renewals under way come to their end, and no other begin.
    pub(in crate::manager) async fn close(&self) {
        self.turns.send_modify(|turns| turns.is_closed = true);
        let mut turns = self.turns.subscribe();
        let over = turns.wait_for(|turns| turns.vrots.is_empty());
        if timeout(CLOSING, over).await.is_err() {
            tracing::warn!("a renewal is given up half-way; it will be done again");
        }
    }

    /// Whether there is room for another renewal, or none will begin any more.
    fn room(&self) -> Room {
        let turns = self.turns.borrow();
        match turns.is_closed {
            true => Room::Closed,
            false if turns.vrots.len() >= MOST_AT_A_TIME => Room::None,
            false => Room::ForOne,
        }
    }

    /// Notes that a certificate was renewed and is durable.
    pub(in crate::manager) fn succeeded(&self, vrot: VrotId) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.failing().remove(&vrot);
    }

    /// Notes that nothing fails any more.
    pub(in crate::manager) fn no_failure(&self, vrot: VrotId) {
        self.failing().remove(&vrot);
    }

    fn may_be_tried(&self, vrot: VrotId) -> bool {
        if self.turns.borrow().vrots.contains(&vrot) {
            return false;
        }
        let failing = self.failing();
        failing
            .get(&vrot)
            .is_none_or(|failure| failure.again <= Instant::now())
    }

    /// Notes a failure; whether its reason is another one than last time.
    fn failed(&self, vrot: VrotId, reason: Option<&str>, longest: Duration) -> bool {
        if reason.is_some() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        let mut failing = self.failing();
        let last = failing.get(&vrot);
        let is_news = reason.is_some() && last.is_none_or(|last| last.reason.as_deref() != reason);
        let attempts = last.map_or(0, |last| last.attempts).saturating_add(1);
        let pause = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(16));
        failing.insert(
            vrot,
            Failure {
                reason: reason.map(str::to_owned),
                attempts,
                again: Instant::now() + pause.min(LONGEST_RETRY).min(longest),
            },
        );
        is_news
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<VrotId, Failure>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether another renewal may begin.
enum Room {
    ForOne,
    None,
    Closed,
}

impl Turn {
    /// None, if no renewal begins any more.
    pub(in crate::manager) fn take(manager: &Arc<Manager>, vrot: VrotId) -> Option<Self> {
        let is_taken = manager.renewals.turns.send_if_modified(|turns| {
            if !turns.is_closed {
                turns.vrots.push(vrot);
            }
            !turns.is_closed
        });
        is_taken.then(|| Self {
            manager: Arc::clone(manager),
            vrot,
        })
    }

    /// Renews the certificate, and notes what comes of it.
    async fn use_up(self, vrot: Arc<Vrot>) {
        match self.manager.renew_running(&vrot).await {
            Ok(()) => {
                self.manager.renewals.failing().remove(&self.vrot);
            }
            Err(error) => self.manager.note_failure(self.vrot, &error).await,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        (self.manager.renewals.turns).send_modify(|turns| {
            let position = turns.vrots.iter().position(|vrot| *vrot == self.vrot);
            position.map(|position| turns.vrots.swap_remove(position));
        });
    }
}

/// Renews certificates that are due.
pub(in crate::manager) async fn keep_fresh(manager: Arc<Manager>) {
    loop {
        let pause = match manager.renew_next().await {
            Step::Taken => PAUSE,
            Step::NothingDue => INSPECTION.min(manager.config.renewal.after / 2),
            Step::Closed => return,
        };
        sleep(pause).await;
    }
}

/// What one step was.
enum Step {
    /// A certificate was renewed, or could not be, or is still being renewed.
    Taken,
    NothingDue,
    Closed,
}

impl Manager {
    /// How it stands with the renewal of certificates.
    pub fn renewals(&self) -> &Renewals {
        &self.renewals
    }

    /// Renews the certificate that has waited longest.
    async fn renew_next(self: &Arc<Self>) -> Step {
        match self.renewals.room() {
            Room::ForOne => {}
            Room::None => return Step::Taken,
            Room::Closed => return Step::Closed,
        }
        // Nothing can be signed without all of them; `host show` says what is missing.
        if !self.store.is_open()
            || self.host.enrolment().is_none()
            || self.host.anchor().silence().is_some()
        {
            return Step::NothingDue;
        }
        let Some(vrot) = self.most_urgent() else {
            return Step::NothingDue;
        };
        let Some(turn) = Turn::take(self, vrot.record().vrot) else {
            return Step::Closed;
        };
        // If it takes longer, it goes on by itself.
        let _ = timeout(PATIENCE, tokio::spawn(turn.use_up(vrot))).await;
        Step::Taken
    }

    fn most_urgent(self: &Arc<Self>) -> Option<Arc<Vrot>> {
        let now = Timestamp::now();
        let mut running = BTreeMap::new();
        for vrot in self.registry.all() {
            if vrot.backend().is_some() {
                if vrot.pending().is_some() {
                    self.issue_pending(&vrot);
                }
                running.insert(vrot.record().vrot, vrot);
            }
        }
        // What stopped meanwhile is renewed when it starts.
        (self.renewals.failing()).retain(|vrot, _| running.contains_key(vrot));
        running
            .into_iter()
            .filter(|(id, _)| self.renewals.may_be_tried(*id))
            .map(|(_, vrot)| (vrot.record(), vrot))
            .filter(|(record, _)| self.is_renewal_due(record, now))
            .min_by_key(|(record, _)| record.identity.vik_issued_at)
            .map(|(_, vrot)| vrot)
    }

    async fn renew_running(&self, vrot: &Vrot) -> Result<(), ManagerError> {
        let _gate = vrot.gate.lock().await;
        let record = vrot.record();
        let Some(backend) = vrot.backend() else {
            return Ok(());
        };
        if !matches!(record.lifecycle, Lifecycle::Running { .. })
            || !self.is_renewal_due(&record, Timestamp::now())
        {
            return Ok(());
        }
        self.renew_beside_guest(vrot, &backend).await
    }

    pub(in crate::manager) async fn note_failure(&self, vrot: VrotId, error: &ManagerError) {
        let longest = self.config.renewal.after;
        if is_not_ready(error) {
            tracing::info!(%vrot, "the guest is on its way up: its certificate is renewed later");
            self.renewals.failed(vrot, None, longest);
            return;
        }
        let reason = WithCauses(error).to_string();
        tracing::error!(%vrot, reason, "the certificate of an identity key is not issued");
        if !(self.renewals).failed(vrot, Some(&reason), longest) {
            return;
        }
        let event = Event::CertificateRenewalFailed {
            vrot,
            reason: reason.into(),
        };
        if let Err(error) = self.record(event).await {
            tracing::error!(%vrot, %error, "a failure could not be recorded");
        }
    }

    /// Whether a vRoT's certificates should be renewed, and would live longer then.
    ///
    /// What is not valid now, at either end of its life, was issued by a clock that has been set
    /// since, or was not renewed in time. Waiting does not mend that.
    pub(in crate::manager) fn is_renewal_due(&self, record: &VrotRecord, now: Timestamp) -> bool {
        let identity = &record.identity;
        let Some(certificate) = &identity.vik_certificate else {
            // It is issued for the first time, which is no renewal.
            return false;
        };
        let Some(life) = &life(certificate) else {
            return true;
        };
        if *life.start() > now.seconds()
            || !has_valid_eks(identity, now)
            || !are_valid([&identity.tls_certificate], now)
        {
            return true;
        }
        let due = half_life(identity, life).min(later(
            identity.vik_issued_at,
            self.config.renewal.after.as_secs(),
        ));
        if now < due {
            return false;
        }
        // One that ends with the host's own certificate waits for the host to get a new one.
        let ends_with_host = self.host.enrolment().is_some_and(|enrolment| {
            enrolment.certificate.der()[..] == identity.host_certificate[..]
                && *life.end() == enrolment.certificate.not_after().as_secs()
        });
        !ends_with_host || identity.vik_issued_at == Timestamp::new(0)
    }

    /// A new vIK certificate in the old one's place. The record is changed, but not committed; the
    /// caller writes the line that is returned together with what else happens.
    pub(in crate::manager) async fn certify(
        &self,
        record: &mut VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        now: Timestamp,
        step: CertificateStep,
    ) -> Result<Event, ManagerError> {
        let vrot = record.vrot;
        let (enrolment, signer) = self.host.issuer().await?;
        let authority = nv_authority(keyring, record)?;
        let host_certificate = match step {
            // A running vRoT has little room for another one: that waits for the next start.
            CertificateStep::Running if self.lasts(&record.identity.host_certificate, now) => {
                &record.identity.host_certificate[..]
            }
            _ => enrolment.certificate.der(),
        };
        let chain = if *host_certificate == record.identity.host_certificate[..] {
            Chain::Same
        } else {
            Chain::Changed
        };
        let guest = match step {
            CertificateStep::Start => Guest::Absent,
            CertificateStep::Running => Guest::Present,
        };
        let order = self.order(record.subject(), host_certificate, now).await?;
        let vik = self.rederived(record).await?;
        let besides = RenewedBesides {
            tls: match record.identity.tls_certificate {
                Some(_) => record.identity.tls_key(vrot)?,
                // One that is pending comes by itself.
                None => None,
            },
            eks: match has_valid_eks(&record.identity, now) {
                true => None,
                false => Some(record.identity.eks(vrot)?),
            },
        };
        let mut channel = backend.channel();
        let specification = order.clone();
        let Renewed {
            vik: certificate,
            tls,
            eks,
        } = blocking(move || {
            let kept = (guest, chain);
            let (order, channel) = (&specification, &mut channel);
            let renewed = renew(order, &vik, &besides, &authority, channel, &signer, kept);
            renewed.map_err(|error| ManagerError::of_manufacture(error, &signer))
        })
        .await??;
        let tls_certificate = tls.as_deref().map(Digest32::of);
        if let Some(tls) = tls {
            record.identity.tls_certificate = Some(tls.to_vec().into());
        }
        if let Some([rsa, p256]) = eks {
            record.identity.ek_rsa_certificate = Some(rsa.to_vec().into());
            record.identity.ek_p256_certificate = Some(p256.to_vec().into());
        }
        record.identity.vik_certificate = Some(certificate.to_vec().into());
        record.identity.host_certificate = order.host_certificate.into();
        record.identity.manager = order.manager;
        record.identity.backend = order.backend;
        record.identity.vik_issued_at = now;
        Ok(Event::CertificateRenewed {
            vrot,
            certificate: Digest32::of(&certificate),
            tls_certificate,
        })
    }

    /// Renews a vRoT's certificates now: beside its guest where it runs, and else at its next
    /// start.
    pub async fn renew_now(&self, key: VrotKey) -> Result<Arc<Vrot>, ManagerError> {
        let vrot = self.find(key)?;
        let gate = vrot.gate_for_an_order().await;
        vrot.check_settled()?;
        let mut record = vrot.record_to_change();
        match vrot.backend() {
            Some(backend) if matches!(record.lifecycle, Lifecycle::Running { .. }) => {
                self.renew_beside_guest(&vrot, &backend).await?;
            }
            _ => {
                record.identity.vik_issued_at = Timestamp::new(0);
                self.commit_record(&record).await?;
                vrot.set_record(record);
            }
        }
        drop(gate);
        Ok(vrot)
    }

    /// Renews the certificates of a running vRoT and commits them. Its gate must be held.
    async fn renew_beside_guest(&self, vrot: &Vrot, backend: &Backend) -> Result<(), ManagerError> {
        let keyring = self.host.keyring().await?;
        let before = vrot.record();
        let mut record = vrot.record_to_change();
        let (now, step) = (Timestamp::now(), CertificateStep::Running);
        let renewed = self
            .certify(&mut record, &keyring, backend, now, step)
            .await?;
        self.record(renewed).await?;
        let restored = self.restore_certificates(&record, &keyring, backend, Guest::Present);
        let committed = match restored.await {
            Ok(()) => self.commit_record(&record).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            // The line above tells of a certificate that the store does not have.
            self.record_as_it_was(before.vrot, Some(&before)).await;
            return Err(error);
        }
        vrot.set_record(record);
        self.renewals.succeeded(before.vrot);
        Ok(())
    }

    /// Whether a certificate issued now under this one of the host would live its whole life.
    fn lasts(&self, host_certificate: &[u8], now: Timestamp) -> bool {
        let end = later(now, self.config.renewal.lifetime.as_secs()).seconds();
        life(host_certificate).is_some_and(|life| *life.end() >= end)
    }

    /// The vIK, made anew in a copy of the vRoT: its owner may have set passwords, and a guest may
    /// hold every slot.
    async fn rederived(&self, record: &VrotRecord) -> Result<RederivedVik, ManagerError> {
        let expected = record.identity.vik(record.vrot)?.name();
        let folder = RuntimeFolder::of_copy(&self.config.runtime_dir, record.vrot);
        let copy = self
            .open_backend_in(folder, record, Role::Manufacture)
            .await?;
        let mut channel = copy.channel();
        let rederived = blocking(move || rederive_vik_from_copy(&mut channel, &expected)).await;
        // What it says of its state goes with it, and is not committed.
        if let Err(error) = copy.stop().await {
            tracing::warn!(vrot = %record.vrot, %error, "a copy ended by itself");
        }
        rederived?.map_err(ManagerError::Manufacture)
    }
}

/// First and last second of a certificate; none, if it cannot be read.
fn life(certificate: &[u8]) -> Option<RangeInclusive<u64>> {
    let validity = Validity::of_certificate(certificate).ok()?;
    Some(validity.not_before().as_secs()..=validity.not_after().as_secs())
}

/// Whether the certificates of both endorsement keys are valid, where they are not pending.
pub(in crate::manager) fn has_valid_eks(identity: &Identity, now: Timestamp) -> bool {
    let eks = [&identity.ek_rsa_certificate, &identity.ek_p256_certificate];
    are_valid(eks, now)
}

/// Whether certificates are valid, where they are not pending.
fn are_valid<'a>(
    certificates: impl IntoIterator<Item = &'a Option<ByteVec>>,
    now: Timestamp,
) -> bool {
    (certificates.into_iter().flatten())
        .all(|certificate| life(certificate).is_some_and(|life| life.contains(&now.seconds())))
}

/// Whether a vRoT waits for its VMM to resume it or to bring its state, or for the guest's firmware
/// to start it. The manager does none of these in their place.
pub(in crate::manager) fn is_not_ready(error: &ManagerError) -> bool {
    let ManagerError::Manufacture(ManufactureError::Tpm { code, .. }) = error else {
        return false;
    };
    matches!(*code, ResponseCode::RETRY | ResponseCode::INITIALIZE)
}

/// Whether the vIK's certificate has most of its life before it.
pub(in crate::manager) fn is_fresh(identity: &Identity, now: Timestamp) -> bool {
    let life = identity
        .vik_certificate
        .as_deref()
        .and_then(|der| life(der));
    life.is_some_and(|life| now < half_life(identity, &life))
}

/// When half of the life of the vIK's certificate is over.
fn half_life(identity: &Identity, life: &RangeInclusive<u64>) -> Timestamp {
    let issued = identity.vik_issued_at;
    later(issued, life.end().saturating_sub(issued.seconds()) / 2)
}

fn later(at: Timestamp, seconds: u64) -> Timestamp {
    Timestamp::new(at.seconds().saturating_add(seconds))
}
