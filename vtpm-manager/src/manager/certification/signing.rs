//! First certificates: signed by the host IK, and written into the vRoT.

use api_types::Timestamp;
use cert_chain::layout::NvIndex;
use cert_chain::{Digest32, VrotId};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use vrot_manufacture::{
    CertifiedSubject, Uncertified, device, issue_eks, issue_tls, issue_vik, write_certificates,
};

use super::Certification;
use super::turns::{Need, Turns};
use crate::audit::Event;
use crate::backend::Backend;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::{Pending, VrotRecord};

/// How many first certificates are worked at.
#[derive(Debug)]
pub(super) struct Signatures {
    /// The physical TPM signs one thing at a time: one waits for its turn while another is signed,
    /// and the store's own commands never stand behind more than these.
    viks: Turns,
    tls_keys: Turns,
    eks: Turns,
    /// Each use of a backend takes a thread, for as long as one that hangs does not answer.
    pub(super) backends: Semaphore,
}

/// Certificates that are signed, and not in the vRoT yet.
pub(super) struct Signed {
    pending: Pending,
    subject: CertifiedSubject,
    host_certificate: Vec<u8>,
    manager: Digest32,
    backend: Digest32,
    at: Timestamp,
    certificates: Vec<(NvIndex, CertificateDer<'static>)>,
}

const VIK_SIGNATURES: usize = 2;
const TLS_SIGNATURES: usize = 2;
const EK_SIGNATURES: usize = 1;
const BACKENDS: usize = 32;

impl Default for Signatures {
    fn default() -> Self {
        Self {
            viks: Turns::new(VIK_SIGNATURES),
            tls_keys: Turns::new(TLS_SIGNATURES),
            eks: Turns::new(EK_SIGNATURES),
            backends: Semaphore::new(BACKENDS),
        }
    }
}

impl Certification {
    /// Signs what is pending for a vRoT that no guest uses yet, and writes it. The record is
    /// changed, but not committed.
    pub(in crate::manager) async fn issue_at_once(
        &self,
        record: &mut VrotRecord,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        while let Some(pending) = record.identity.pending() {
            let signed = self.sign(record, pending, backend, || Need::Asker).await?;
            self.write(&signed, record, backend).await?;
            signed.enter(record);
        }
        Ok(())
    }

    pub(super) async fn sign(
        &self,
        record: &VrotRecord,
        pending: Pending,
        backend: &Backend,
        need: impl Fn() -> Need + Send + 'static,
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
                let _turn = self.signatures.viks.turn(need).await;
                blocking(move || {
                    let vik = issue_vik(&order, &vik, &signer);
                    let vik = vik.map_err(|error| failed(error, &signer))?;
                    Ok::<_, ManagerError>(vec![(NvIndex::VIK_CERTIFICATE, vik)])
                })
                .await??
            }
            Uncertified { tls: Some(key), .. } => {
                let signer = match need() {
                    Need::Asker => signer,
                    Need::Vm | Need::Nobody => signer.later(),
                };
                let _turn = self.signatures.tls_keys.turn(need).await;
                blocking(move || {
                    let tls = issue_tls(&order, &key, &signer);
                    let tls = tls.map_err(|error| failed(error, &signer))?;
                    Ok::<_, ManagerError>(vec![(NvIndex::TLS_CERTIFICATE, tls)])
                })
                .await??
            }
            Uncertified { eks: Some(eks), .. } => {
                let device = {
                    let _use = self.signatures.backends.acquire().await;
                    let mut channel = backend.channel();
                    blocking(move || device(&mut channel)).await?
                };
                let device = device.map_err(ManagerError::Manufacture)?;
                let _turn = self.signatures.eks.turn(need).await;
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

    /// Writes certificates into a vRoT.
    pub(super) async fn write(
        &self,
        signed: &Signed,
        record: &VrotRecord,
        backend: &Backend,
    ) -> Result<(), ManagerError> {
        let authority = self.authority(record).await?;
        let certificates = signed.certificates.clone();
        let mut channel = backend.channel();
        blocking(move || write_certificates(&certificates, &authority, &mut channel))
            .await?
            .map_err(ManagerError::Manufacture)
    }
}

impl Signed {
    /// Whether they are pending for the vRoT with this record, and say what it says.
    pub(super) fn is_for(&self, record: &VrotRecord) -> bool {
        record.identity.pending() == Some(self.pending)
            && record.subject() == self.subject
            && record.identity.host_certificate[..] == self.host_certificate[..]
    }

    pub(super) fn enter(&self, record: &mut VrotRecord) {
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
    pub(super) fn event(&self, vrot: VrotId) -> Event {
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
