//! Keys and certificates of a vRoT.

use api_types::Timestamp;
use cert_chain::layout::NvIndex;
use cert_chain::{AttestationKey, Digest32, EndorsementKey, PublicArea, TlsKey, TpmName, VrotId};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use vrot_manufacture::{Manufactured, Uncertified, tls_template, vik_template};

use super::error::RecordError;

/// Keys and certificates of a vRoT, as they were made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Identity {
    /// `TPMT_PUBLIC` of the vIK.
    #[n(0)]
    pub(super) vik: ByteVec,
    /// `TPMT_PUBLIC` of the RSA-2048 EK.
    #[n(1)]
    pub(super) ek_rsa: ByteVec,
    /// `TPMT_PUBLIC` of the P-256 EK.
    #[n(2)]
    pub(super) ek_p256: ByteVec,
    /// Certificate of the vIK in DER; none while it is pending.
    #[n(3)]
    pub vik_certificate: Option<ByteVec>,
    /// Certificate of the RSA-2048 EK in DER; none while it is pending.
    #[n(4)]
    pub ek_rsa_certificate: Option<ByteVec>,
    /// Certificate of the P-256 EK in DER; none while it is pending.
    #[n(5)]
    pub ek_p256_certificate: Option<ByteVec>,
    /// The host's certificate, which issues these, in DER.
    #[n(6)]
    pub host_certificate: ByteVec,
    /// Digest of the manager that made them.
    #[n(7)]
    pub manager: Digest32,
    /// Digest of the backend in which they were made.
    #[n(8)]
    pub backend: Digest32,
    /// When the vIK's certificate was issued; 0 while it is pending, or to have it renewed.
    #[n(9)]
    pub vik_issued_at: Timestamp,
    /// `TPMT_PUBLIC` of the TLS key; none in a vRoT that was made before there were any.
    #[n(10)]
    pub(super) tls_key: Option<ByteVec>,
    /// Certificate of the TLS key in DER; none while it is pending, or if there is no such key.
    #[n(11)]
    pub tls_certificate: Option<ByteVec>,
}

/// Certificates that are still to be issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// That of the vIK, and perhaps the others.
    Vik,
    /// That of the TLS key, and perhaps those of the endorsement keys: the vRoT can attest.
    Tls,
    /// Those of the endorsement keys.
    Eks,
}

impl Identity {
    /// Records what was manufactured; all certificates are pending.
    pub fn new(
        manufactured: &Manufactured,
        host_certificate: &[u8],
        manager: Digest32,
        backend: Digest32,
    ) -> Self {
        let area = |area: &PublicArea| ByteVec::from(area.as_bytes().to_vec());
        Self {
            vik: area(manufactured.vik.public_area()),
            ek_rsa: area(manufactured.ek_rsa.public_area()),
            ek_p256: area(manufactured.ek_p256.public_area()),
            vik_certificate: None,
            ek_rsa_certificate: None,
            ek_p256_certificate: None,
            host_certificate: host_certificate.to_vec().into(),
            manager,
            backend,
            vik_issued_at: Timestamp::new(0),
            tls_key: Some(area(manufactured.tls.public_area())),
            tls_certificate: None,
        }
    }

    /// What is still to be issued, the vIK's certificate first.
    pub fn pending(&self) -> Option<Pending> {
        if self.vik_certificate.is_none() {
            Some(Pending::Vik)
        } else if self.is_tls_key_certified() == Some(false) {
            Some(Pending::Tls)
        } else {
            (!self.has_ek_certificates()).then_some(Pending::Eks)
        }
    }

    /// Whether the TLS key has a certificate; none, if there is no such key.
    pub fn is_tls_key_certified(&self) -> Option<bool> {
        self.tls_key
            .as_ref()
            .map(|_| self.tls_certificate.is_some())
    }

    /// Whether both endorsement keys have a certificate.
    pub fn has_ek_certificates(&self) -> bool {
        self.ek_rsa_certificate.is_some() && self.ek_p256_certificate.is_some()
    }

    /// The keys whose certificates are pending.
    pub fn uncertified(&self, vrot: VrotId) -> Result<Uncertified, RecordError> {
        let vik = self.vik_certificate.is_none().then(|| self.vik(vrot));
        let eks = (!self.has_ek_certificates()).then(|| self.eks(vrot));
        Ok(Uncertified {
            vik: vik.transpose()?,
            tls: match self.tls_certificate {
                None => self.tls_key(vrot)?,
                Some(_) => None,
            },
            eks: eks.transpose()?,
        })
    }

    /// What the guest is to find in its NV indices; one whose certificate is pending has no content.
    pub fn published(&self) -> Vec<(NvIndex, Vec<u8>)> {
        let certificate = |der: &Option<ByteVec>| der.as_ref().map(|der| der.to_vec());
        let contents = [
            (
                NvIndex::EK_RSA_CERTIFICATE,
                certificate(&self.ek_rsa_certificate),
            ),
            (
                NvIndex::EK_P256_CERTIFICATE,
                certificate(&self.ek_p256_certificate),
            ),
            (
                NvIndex::CERTIFICATE_CHAIN,
                Some(self.host_certificate.to_vec()),
            ),
            (NvIndex::VIK_CERTIFICATE, certificate(&self.vik_certificate)),
            (NvIndex::VIK_TEMPLATE, Some(vik_template())),
            (NvIndex::TLS_CERTIFICATE, certificate(&self.tls_certificate)),
            (
                NvIndex::TLS_TEMPLATE,
                self.tls_key.as_ref().map(|_| tls_template()),
            ),
        ];
        let contents = contents.into_iter();
        contents
            .filter_map(|(index, content)| Some((index, content?)))
            .collect()
    }

    /// Makes the certificates pending that name the VM, and also those of the endorsement keys, unless
    /// these are kept.
    pub fn withdraw(&mut self, keeps_eks: bool) {
        self.vik_certificate = None;
        self.tls_certificate = None;
        self.vik_issued_at = Timestamp::new(0);
        if !keeps_eks {
            self.ek_rsa_certificate = None;
            self.ek_p256_certificate = None;
        }
    }

    /// SHA-256 value of the vIK's certificate, if that is not pending.
    pub fn vik_certificate_digest(&self) -> Option<Digest32> {
        self.vik_certificate.as_deref().map(|der| Digest32::of(der))
    }

    /// The vIK.
    pub fn vik(&self, vrot: VrotId) -> Result<AttestationKey, RecordError> {
        key(&self.vik, vrot, "vIK")
    }

    /// The TLS key, if the vRoT has one.
    pub fn tls_key(&self, vrot: VrotId) -> Result<Option<TlsKey>, RecordError> {
        let area = self.tls_key.as_ref();
        area.map(|area| key(area, vrot, "TLS key")).transpose()
    }

    /// Both EKs, the RSA key first.
    pub fn eks(&self, vrot: VrotId) -> Result<[EndorsementKey; 2], RecordError> {
        Ok([self.ek_rsa(vrot)?, self.ek_p256(vrot)?])
    }

    /// `TPMT_PUBLIC` of the RSA-2048 EK, which no two TPMs have in common.
    pub fn ek_rsa_area(&self) -> &[u8] {
        &self.ek_rsa
    }

    /// The RSA-2048 EK.
    pub fn ek_rsa(&self, vrot: VrotId) -> Result<EndorsementKey, RecordError> {
        key(&self.ek_rsa, vrot, "RSA-2048 EK")
    }

    /// The P-256 EK.
    pub fn ek_p256(&self, vrot: VrotId) -> Result<EndorsementKey, RecordError> {
        key(&self.ek_p256, vrot, "P-256 EK")
    }

    /// Names of both EKs.
    pub fn ek_names(&self, vrot: VrotId) -> Result<Vec<TpmName>, RecordError> {
        Ok(vec![self.ek_rsa(vrot)?.name(), self.ek_p256(vrot)?.name()])
    }
}

fn key<K: TryFrom<PublicArea>>(
    bytes: &[u8],
    vrot: VrotId,
    which: &'static str,
) -> Result<K, RecordError> {
    PublicArea::parse(bytes)
        .ok()
        .and_then(|area| K::try_from(area).ok())
        .ok_or(RecordError::Key { vrot, which })
}
