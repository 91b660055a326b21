//! New certificates in the place of old ones, while their VMs run.
//!
//! A certificate is renewed at half of its life at the latest. Renewals begin one after the other,
//! so that a host full of VMs started together does not keep the physical TPM from quoting; the
//! half of a life that is left is long enough for all of them, and for many attempts at each. Each
//! is a task of its own: a vRoT whose backend does not answer keeps the next from its turn for a
//! moment only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::{Digest32, VrotId};
use tokio::time::timeout;
use vrot_manufacture::{
    Chain, Guest, RederivedVik, Renewed, RenewedBesides, rederive_vik_from_copy, renew,
};

use super::due::{has_valid_eks, is_due, outlives};
use super::{Certification, Work};
use crate::audit::Event;
use crate::backend::Backend;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::VrotRecord;

/// When a certificate is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::manager) enum CertificateStep {
    /// At a start, before the guest runs.
    Start,
    /// Beside the guest, which may hold every slot as well.
    Running,
}

/// A renewal that takes longer goes on beside the next.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Each takes a thread while its backend does not answer.
const MOST_AT_A_TIME: usize = 32;

impl Certification {
    /// Renews the certificate that has waited longest, of these running vRoTs, and has those issued
    /// that are pending; whether anything was due.
    pub(in crate::manager) async fn renew_next(self: &Arc<Self>, running: Vec<Arc<Vrot>>) -> bool {
        if self.renewing.len() >= MOST_AT_A_TIME {
            return true;
        }
        // Nothing can be signed without these; `host show` says what is missing.
        if !self.can_sign() {
            return false;
        }
        for vrot in &running {
            self.issue_pending(vrot);
        }
        let Some(vrot) = self.most_urgent(running) else {
            return false;
        };
        let Some(work) = self.renewing.begin(vrot.record().vrot) else {
            return true;
        };
        let certification = Arc::clone(self);
        let renewal = async move { certification.renew_in_turn(&vrot, work).await };
        // If it takes longer, it goes on by itself.
        let _ = timeout(STEP_TIMEOUT, self.background.spawn(renewal)).await;
        true
    }

    fn most_urgent(&self, running: Vec<Arc<Vrot>>) -> Option<Arc<Vrot>> {
        let now = Timestamp::now();
        let running: BTreeMap<VrotId, Arc<Vrot>> = (running.into_iter())
            .map(|vrot| (vrot.record().vrot, vrot))
            .collect();
        // What stopped meanwhile is renewed when it starts.
        self.failures.keep(|vrot| running.contains_key(&vrot));
        running
            .into_iter()
            .filter(|(id, _)| !self.renewing.has(*id) && self.failures.admit(*id))
            .map(|(_, vrot)| (vrot.record(), vrot))
            .filter(|(record, _)| self.is_renewal_due(record, now))
            .min_by_key(|(record, _)| record.identity.vik_issued_at)
            .map(|(_, vrot)| vrot)
    }

    async fn renew_in_turn(&self, vrot: &Vrot, work: Work) {
        match self.renew_running(vrot).await {
            Ok(()) => self.failures.forget(work.vrot),
            Err(error) => self.note_failure(work.vrot, &error).await,
        }
    }

    async fn renew_running(&self, vrot: &Vrot) -> Result<(), ManagerError> {
        let _gate = vrot.gate.lock().await;
        let record = vrot.record();
        match vrot.backend() {
            Some(backend)
                if record.lifecycle.is_running()
                    && self.is_renewal_due(&record, Timestamp::now()) =>
            {
                self.renew_beside_guest(vrot, &backend).await
            }
            _ => Ok(()),
        }
    }

    /// Whether a vRoT's certificates should be renewed.
    pub(in crate::manager) fn is_renewal_due(&self, record: &VrotRecord, now: Timestamp) -> bool {
        let host = self.host.enrolment();
        is_due(&record.identity, now, self.lifetimes.after, host.as_deref())
    }

    /// Renews the certificates of a running vRoT and commits them. Its gate must be held.
    pub(in crate::manager) async fn renew_beside_guest(
        &self,
        vrot: &Vrot,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        let before = vrot.record();
        let mut record = vrot.record_to_change();
        let (now, step) = (Timestamp::now(), CertificateStep::Running);
        let renewed = self.certify(&mut record, backend, now, step).await?;
        self.guarded.record(renewed).await?;
        let restored = self.restore_certificates(&record, backend, Guest::Present);
        let committed = match restored.await {
            Ok(()) => self.guarded.commit(record.to_batch()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            // The line above tells of a certificate that the store does not have.
            self.guarded
                .record_as_it_was(before.vrot, Some(&before))
                .await;
            return Err(error);
        }
        vrot.set_record(record);
        self.succeeded(before.vrot);
        Ok(())
    }

    /// A new vIK certificate in the old one's place. The record is changed, but not committed; the
    /// caller writes the line that is returned together with what else happens.
    pub(in crate::manager) async fn certify(
        &self,
        record: &mut VrotRecord,
        backend: &Backend,
        now: Timestamp,
        step: CertificateStep,
    ) -> Result<Event, ManagerError> {
        let vrot = record.vrot;
        let (enrolment, signer) = self.host.issuer().await?;
        let authority = self.authority(record).await?;
        let present = &record.identity.host_certificate;
        let host_certificate = match step {
            // A running vRoT has little room for another one: that waits for the next start.
            CertificateStep::Running if outlives(present, now, self.lifetimes.lifetime) => {
                &present[..]
            }
            _ => enrolment.certificate.der(),
        };
        let chain = if *host_certificate == present[..] {
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

    /// The vIK, made anew in a copy of the vRoT: its owner may have set passwords, and a guest may
    /// hold every slot.
    async fn rederived(&self, record: &VrotRecord) -> Result<RederivedVik, ManagerError> {
        let expected = record.identity.vik(record.vrot)?.name();
        let copy = self.launcher.open_copy(record).await?;
        let mut channel = copy.channel();
        let rederived = blocking(move || rederive_vik_from_copy(&mut channel, &expected)).await;
        // What it says of its state goes with it, and is not committed.
        if let Err(error) = copy.stop().await {
            tracing::warn!(vrot = %record.vrot, %error, "a copy ended by itself");
        }
        rederived?.map_err(ManagerError::Manufacture)
    }
}
