//! Certificates of vRoTs: issued for the first time, renewed, put back where a guest changed them.
//!
//! | file | what |
//! |---|---|
//! | `due.rs` | when a certificate is to be renewed |
//! | `signing.rs` | first certificates: signed, and written into the vRoT |
//! | `turns.rs` | whose certificate is signed next |
//! | `pending_indices.rs` | room for certificates that are still to be issued |
//! | `issuance.rs` | first certificates, beside a guest |
//! | `renewal.rs` | new certificates in the place of old ones |
//! | `restoration.rs` | certificate indices that hold something else than the record |
//! | `failures.rs` | attempts that failed, and when to try again |

mod due;
mod failures;
mod issuance;
mod pending_indices;
mod renewal;
mod restoration;
mod signing;
mod turns;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api_types::{Timestamp, WithCauses};
use cert_chain::{Digest32, HostName, VrotId};
use vrot_manufacture::{CertifiedSubject, ManufactureOrder, NvAuthority};

use super::error::ManagerError;
use super::guarded::Guarded;
use super::launcher::Launcher;
use crate::audit::Event;
use crate::background::Background;
use crate::config::RenewalConfig;
use crate::host::{Enrolment, Host};
use crate::keys::{KeyError, Keyring, Purpose};
use crate::vrot::VrotRecord;

use failures::Failures;
use signing::Signatures;

pub(super) use due::{has_valid_eks, is_fresh};
pub(super) use renewal::CertificateStep;

/// Owns what is done about certificates.
#[derive(Debug)]
pub struct Certification {
    host: Arc<Host>,
    guarded: Arc<Guarded>,
    launcher: Arc<Launcher>,
    background: Background,
    /// Digest of this program.
    program: Digest32,
    lifetimes: RenewalConfig,
    failures: Failures,
    signatures: Signatures,
    /// vRoTs that have a task for their first certificates.
    issuing: InProgress,
    /// vRoTs whose certificates are being renewed.
    renewing: InProgress,
    /// How many identity keys got their first certificate beside a launch.
    issued: AtomicU64,
    /// How many certificates were renewed.
    renewed: AtomicU64,
}

/// vRoTs for which something is being done.
#[derive(Clone, Debug, Default)]
struct InProgress(Arc<Mutex<BTreeSet<VrotId>>>);

/// Something that is being done for a vRoT; over when it is dropped.
#[derive(Debug)]
struct Work {
    all: InProgress,
    vrot: VrotId,
}

/// A manager that ends waits this long for the certificates that are being written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

impl Certification {
    pub(super) fn new(
        host: Arc<Host>,
        guarded: Arc<Guarded>,
        launcher: Arc<Launcher>,
        program: Digest32,
        lifetimes: RenewalConfig,
    ) -> Self {
        Self {
            host,
            guarded,
            launcher,
            background: Background::default(),
            program,
            lifetimes,
            failures: Failures::default(),
            signatures: Signatures::default(),
            issuing: InProgress::default(),
            renewing: InProgress::default(),
            issued: AtomicU64::new(0),
            renewed: AtomicU64::new(0),
        }
    }

    /// The host's certificate as it is now.
    pub(super) fn enrolment(&self) -> Option<Arc<Enrolment>> {
        self.host.enrolment()
    }

    /// What this host is called, once it is enrolled.
    pub(super) fn host_name(&self) -> Option<HostName> {
        let enrolment = self.host.enrolment()?;
        Some(enrolment.host().clone())
    }

    /// How many identity keys got their first certificate beside a launch since the manager
    /// started.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// How many certificates were renewed since the manager started.
    pub fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// How many attempts at a certificate failed since the manager started.
    pub fn failed(&self) -> u64 {
        self.failures.count()
    }

    /// How many vRoTs have a certificate that should be issued or renewed, and could not be.
    pub fn overdue(&self) -> usize {
        self.failures.vrots()
    }

    /// Why the last attempt for a vRoT failed, if it did.
    pub fn problem(&self, vrot: VrotId) -> Option<String> {
        self.failures.reason(vrot)
    }

    /// Whether anything can be signed.
    fn can_sign(&self) -> bool {
        self.guarded.is_open()
            && self.host.enrolment().is_some()
            && self.host.anchor().silence().is_none()
    }

    /// Lets the certificates that are being written come to their end.
    pub(super) async fn close(&self) {
        if self.background.join_within(CLOSE_TIMEOUT).await > 0 {
            tracing::warn!("a certificate is given up half-way; it will be issued again");
        }
    }

    /// What the certificates of this vRoT are to say if they are issued now under this certificate
    /// of the host.
    pub(super) async fn order(
        &self,
        subject: CertifiedSubject,
        host_certificate: &[u8],
        now: Timestamp,
    ) -> Result<ManufactureOrder, ManagerError> {
        Ok(ManufactureOrder {
            subject,
            manager: self.program,
            backend: self.launcher.program_digest().await?,
            host_certificate: host_certificate.to_vec(),
            now: now.unix_time(),
            vik_lifetime: self.lifetimes.lifetime,
        })
    }

    /// What writing a vRoT's certificates takes.
    async fn authority(&self, record: &VrotRecord) -> Result<NvAuthority, ManagerError> {
        let keyring = self.host.keyring().await?;
        Ok(nv_authority(&keyring, record)?)
    }

    /// Notes that a certificate was renewed and is durable.
    pub(super) fn succeeded(&self, vrot: VrotId) {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        self.failures.forget(vrot);
    }

    async fn note_failure(&self, vrot: VrotId, error: &ManagerError) {
        let longest = self.lifetimes.after;
        if error.is_not_ready() {
            tracing::info!(%vrot, "the guest is on its way up: its certificate is renewed later");
            self.failures.postpone(vrot, longest);
            return;
        }
        let reason = WithCauses(error).to_string();
        tracing::error!(%vrot, reason, "the certificate of an identity key is not issued");
        if !self.failures.note(vrot, &reason, longest) {
            return;
        }
        let event = Event::CertificateRenewalFailed {
            vrot,
            reason: reason.into(),
        };
        if let Err(error) = self.guarded.record(event).await {
            tracing::error!(%vrot, %error, "a failure could not be recorded");
        }
    }
}

fn nv_authority(keyring: &Keyring, record: &VrotRecord) -> Result<NvAuthority, KeyError> {
    let (vrot, purpose) = (record.vrot, Purpose::NvIndices);
    let authority = keyring.unwrap(vrot, purpose, &record.nv_authority)?;
    let authority = authority.as_slice().try_into().map(NvAuthority::from_bytes);
    authority.map_err(|_| KeyError::Unwrap { vrot, purpose })
}

impl InProgress {
    /// Begins something for a vRoT, unless it is being done.
    fn begin(&self, vrot: VrotId) -> Option<Work> {
        let is_new = self.vrots().insert(vrot);
        is_new.then(|| Work {
            all: self.clone(),
            vrot,
        })
    }

    fn has(&self, vrot: VrotId) -> bool {
        self.vrots().contains(&vrot)
    }

    fn len(&self) -> usize {
        self.vrots().len()
    }

    fn vrots(&self) -> MutexGuard<'_, BTreeSet<VrotId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.all.vrots().remove(&self.vrot);
    }
}
