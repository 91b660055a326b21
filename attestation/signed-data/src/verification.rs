//! From signed data to verified data.

use attestation::device::{DeviceEvidence, VerifiedDevice};
use attestation::{Binding, Evidence, Nonce, Purpose, VerifiedEvidence};
use cert_chain::{
    AttestationKey, DataKey, Digest32, PublicArea, TpmName, TrustAnchors,
    VerifiedDeviceCertificate, VerifiedVikChain, VikChain,
};
use minicbor::bytes::ByteVec;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::UnixTime;

use crate::cose::{Content, SignedData};
use crate::credentials::{Certificates, Credentials};
use crate::label::{EvidenceReference, Label, evidence_nonce};
use crate::refusal::DataRefusal;
use crate::source::Source;

/// Data that the TPM of the source in the label signed, with a key for data.
///
/// That the label's number, time and stream are right is the word of whoever rules that VM or device: the
/// evidence says what that is.
#[derive(Clone, Debug)]
pub struct VerifiedData {
    pub(crate) label: Label,
    pub(crate) content: Content,
    pub(crate) source: VerifiedSource,
    pub(crate) anchors: Digest32,
    pub(crate) verified_at: UnixTime,
}

/// Whose TPM signed, as the issuer certified it, and what it was when the data were signed.
#[derive(Clone, Debug)]
pub enum VerifiedSource {
    /// A VM.
    Vm {
        /// Its certificates, and what they say.
        chain: Box<VerifiedVikChain>,
        /// What the VM and its host were.
        evidence: Option<Box<VerifiedEvidence>>,
    },
    /// A device.
    Device {
        /// Its certificate, and what it says.
        certificate: Box<VerifiedDeviceCertificate>,
        /// What the device was.
        evidence: Option<Box<VerifiedDevice>>,
    },
}

/// Clocks differ by so many seconds at most.
pub const CLOCK_SKEW: u64 = 300;

impl SignedData {
    /// Verifies that the certificates lead to `anchors` as of `at`, that the identity key certified the key
    /// for data, and that the key signed this label and these data; and the evidence as an answer to the
    /// challenge that belongs to them. `data` is the SHA-256 value of the data, which has to be given unless
    /// they travel with the signature.
    pub fn verify(
        self,
        data: Option<&Digest32>,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedData, DataRefusal> {
        self.check_data(data)?;
        let late = self.label.time.saturating_sub(at.as_secs());
        if late > CLOCK_SKEW {
            return Err(DataRefusal::Future(late));
        }
        let source = match &self.credentials.certificates {
            Certificates::Vm(chain) => self.verify_vm(chain, anchors, at)?,
            Certificates::Device(own) => self.verify_device(own, anchors, at)?,
        };
        Ok(VerifiedData {
            label: self.label,
            content: self.content,
            source,
            anchors: *anchors.digest(),
            verified_at: at,
        })
    }

    fn verify_vm(
        &self,
        certificates: &[ByteVec; 2],
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedSource, DataRefusal> {
        let evidence = self.evidence_bytes()?.map(Evidence::from_cbor).transpose();
        let evidence = evidence.map_err(DataRefusal::EvidenceMalformed)?;
        // Revocation lists that the evidence carries count wherever they come from.
        let anchors = match &evidence {
            Some(evidence) => &anchors.with_carried(evidence.crls.iter()),
            None => anchors,
        };
        let certificates = certificates.each_ref().map(|der| der.as_slice());
        let chain = VikChain::from_der_list(&certificates)
            .and_then(|chain| chain.verify(anchors, at))
            .map_err(DataRefusal::Chain)?;
        let vik = &chain.claims().vik;
        let key = self.credentials.data_key(vik, chain.vik_spki())?;
        self.check_signature(&key, Source::Vm(chain.claims().vm))?;
        let verify = |evidence: Evidence| {
            let verified = evidence
                .verify(&self.evidence_nonce()?, &Purpose::SignedData, anchors, at)
                .map_err(|refusal| DataRefusal::Evidence(Box::new(refusal)))?;
            match verified.chain().claims().vik == *vik {
                true => Ok(Box::new(verified)),
                false => Err(DataRefusal::EvidenceOfAnother),
            }
        };
        Ok(VerifiedSource::Vm {
            evidence: evidence.map(verify).transpose()?,
            chain: Box::new(chain),
        })
    }

    fn verify_device(
        &self,
        certificate: &[u8],
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedSource, DataRefusal> {
        let evidence = (self.evidence_bytes()?)
            .map(DeviceEvidence::from_cbor)
            .transpose();
        let evidence = evidence.map_err(DataRefusal::EvidenceMalformed)?;
        let certificate = VerifiedDeviceCertificate::verify(certificate, anchors, at)
            .map_err(DataRefusal::Chain)?;
        let (device, ik) = (certificate.device(), &certificate.claims().ik);
        let key = (self.credentials).data_key(ik, certificate.subject_public_key_info())?;
        self.check_signature(&key, Source::Device(device.clone()))?;
        let verify = |evidence: DeviceEvidence| {
            let verified = evidence
                .verify(&self.evidence_nonce()?, &Binding::SignedData, anchors, at)
                .map_err(|refusal| DataRefusal::DeviceEvidence(Box::new(refusal)))?;
            let quoted = verified.certificate();
            match quoted.claims().ik == *ik && quoted.device() == device {
                true => Ok(Box::new(verified)),
                false => Err(DataRefusal::EvidenceOfAnother),
            }
        };
        Ok(VerifiedSource::Device {
            evidence: evidence.map(verify).transpose()?,
            certificate: Box::new(certificate),
        })
    }

    fn check_data(&self, data: Option<&Digest32>) -> Result<(), DataRefusal> {
        match (data, &self.content) {
            (None, Content::Attached(_)) => Ok(()),
            (None, Content::Hash(_)) => Err(DataRefusal::DataMissing),
            (Some(data), content) if *data == content.digest() => Ok(()),
            (Some(_), _) => Err(DataRefusal::DataMismatch),
        }
    }

    /// The evidence, if it is what the label refers to.
    fn evidence_bytes(&self) -> Result<Option<&[u8]>, DataRefusal> {
        let (said, bytes) = match (&self.label.evidence, &self.credentials.evidence) {
            (None, None) => return Ok(None),
            (Some(said), Some(bytes)) => (said, bytes),
            _ => return Err(DataRefusal::EvidenceAbsent),
        };
        if Digest32::of(bytes) != said.digest {
            return Err(DataRefusal::EvidenceMismatch);
        }
        if said.taken > self.label.time {
            return Err(DataRefusal::EvidenceLater);
        }
        Ok(Some(bytes))
    }

    fn evidence_nonce(&self) -> Result<Nonce, DataRefusal> {
        evidence_nonce(&self.label.key, self.label.sequence, &self.content.digest())
            .map_err(|_| DataRefusal::EvidenceMismatch)
    }

    /// That this key, which is of this source, signed, and that the label names both.
    fn check_signature(&self, key: &DataKey, certified: Source) -> Result<(), DataRefusal> {
        if key.name() != self.label.key {
            return Err(DataRefusal::KeyMismatch);
        }
        let point = key.public_area().public_key_bytes();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(&self.message(), &self.signature)
            .map_err(|_| DataRefusal::Signature)?;
        match self.label.source == certified {
            true => Ok(()),
            false => Err(DataRefusal::Source {
                said: self.label.source.clone(),
                certified,
            }),
        }
    }
}

impl Credentials {
    /// The key for data, which the identity key with this name certified.
    fn data_key(&self, name: &TpmName, public_key_info: &[u8]) -> Result<DataKey, DataRefusal> {
        let area =
            PublicArea::parse(&self.identity_key).map_err(DataRefusal::IdentityKeyMalformed)?;
        let identity = AttestationKey::try_from(area).map_err(DataRefusal::IdentityKey)?;
        if identity.name() != *name || identity.subject_public_key_info() != public_key_info {
            return Err(DataRefusal::IdentityKeyMismatch);
        }
        self.statement.verify(&identity).map_err(DataRefusal::Key)
    }
}

impl VerifiedData {
    /// The label.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// The data, or their SHA-256 value.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Whose TPM signed, and what it was then.
    pub fn source(&self) -> &VerifiedSource {
        &self.source
    }

    /// How many seconds before the data were signed the evidence was asked for, by the source's clock.
    pub fn evidence_age(&self) -> Option<u64> {
        let taken = |evidence: EvidenceReference| self.label.time.saturating_sub(evidence.taken);
        self.label.evidence.map(taken)
    }

    /// The time as of which everything was verified.
    pub fn verified_at(&self) -> UnixTime {
        self.verified_at
    }
}
