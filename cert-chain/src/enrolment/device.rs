//! Enrolment of a device: the same four messages, with less in the first.
//!
//! A device's key is under nobody's approval: it certifies nothing, and what the device booted its quote
//! says. So nothing in a request says whose device it is. The issuer's administrator does, by the name
//! that they expect.

use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::error::EnrolmentError;
use super::message::{self, EnrolmentId, Message};
use super::tpm::{CertifiedTpm, EnrolmentState, PENDING_LIFETIME, ShownTpm};
use crate::attestation_key::AttestationKey;
use crate::credential::CredentialBlob;
use crate::device_name::DeviceName;
use crate::digest::Digest32;
use crate::ek_certificate::TpmMakerRoots;
use crate::hexadecimal;
use crate::name::TpmName;
use crate::profile::{DeviceSpec, Issuer, Validity};
use crate::template::DEVICE_KEY;

/// Device to issuer: "certify this key, which lives beside that endorsement key".
///
/// The keys are marshalled `TPMT_PUBLIC` structures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The path that the device asks for; the issuer adds its domain.
    pub device: String,
    /// The endorsement key's certificate in DER, as read from NV memory.
    #[serde(with = "hexadecimal")]
    pub ek_certificate: Vec<u8>,
    /// Certificates above it, as in a host's [request](super::Request).
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hexadecimal")]
    pub ek_chain: Vec<u8>,
    /// The endorsement key.
    #[serde(with = "hexadecimal")]
    pub ek: Vec<u8>,
    /// The identity key to be certified.
    #[serde(with = "hexadecimal")]
    pub ik: Vec<u8>,
}

/// Issuer to device: "show that your TPM holds both keys".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Which enrolment this is.
    pub enrolment: EnrolmentId,
    /// The name the device would get.
    pub device: DeviceName,
    /// For `TPM2_ActivateCredential`.
    pub credential: CredentialBlob,
}

/// Device to issuer: the secret out of the credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answer(pub message::Answer);

/// Issuer to device: the certificate of its identity key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The name the device got.
    pub device: DeviceName,
    /// The identity key's certificate in DER.
    #[serde(with = "hexadecimal")]
    pub certificate: Vec<u8>,
    /// The issuer's root in DER, for convenience alone.
    #[serde(with = "hexadecimal")]
    pub root: Vec<u8>,
}

impl Message for Request {
    const TYPE: &'static str = "device-enrolment-request";
}

impl Message for Challenge {
    const TYPE: &'static str = "device-enrolment-challenge";
}

impl Message for Answer {
    const TYPE: &'static str = "device-enrolment-answer";
}

impl Message for Certificate {
    const TYPE: &'static str = "device-enrolment-certificate";
}

/// A device's enrolment that was challenged: stored until the answer comes, and again after it.
///
/// It holds a digest of the secret, not the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    enrolment: EnrolmentId,
    device: DeviceName,
    ik: TpmName,
    ek: TpmName,
    ek_key: Digest32,
    maker: String,
    /// What was asked, to be looked at again before it is granted.
    request: Request,
    /// Unix time.
    expires_at: u64,
    state: EnrolmentState,
}

impl Issuer {
    /// Checks a device's request and makes the challenge for it.
    ///
    /// Refused are: an endorsement key without a certificate that leads to an accepted maker, and an
    /// identity key that is not as a device's. Whether the name is the right one is for the caller to
    /// judge ([`Pending::device`]).
    pub fn challenge_device(
        &self,
        request: &Request,
        roots: &TpmMakerRoots,
        at: UnixTime,
    ) -> Result<(Challenge, Pending), EnrolmentError> {
        let (device, tpm) = self.examine_device(request, roots, at)?;
        let asked = tpm.ask()?;
        let challenge = Challenge {
            enrolment: asked.enrolment,
            device: device.clone(),
            credential: asked.credential,
        };
        let pending = Pending {
            enrolment: asked.enrolment,
            device,
            ik: tpm.ik.name(),
            ek: tpm.ek.name(),
            ek_key: tpm.ek.key_digest(),
            maker: tpm.maker,
            request: request.clone(),
            expires_at: at.as_secs().saturating_add(PENDING_LIFETIME.as_secs()),
            state: asked.state,
        };
        Ok((challenge, pending))
    }

    /// Checks the answer and certifies the device's key. All of the request is looked at again; a
    /// refusal for that does not spend `pending`, the first answer that names it does.
    pub fn certify_answer(
        &self,
        pending: &mut Pending,
        Answer(answer): &Answer,
        roots: &TpmMakerRoots,
        validity: Validity,
        at: UnixTime,
    ) -> Result<Certificate, EnrolmentError> {
        if answer.enrolment != pending.enrolment {
            return Err(EnrolmentError::AnotherEnrolment {
                found: answer.enrolment,
                expected: pending.enrolment,
            });
        }
        let (device, tpm) = self.examine_device(&pending.request, roots, at)?;
        // Storage is not proof.
        if device != pending.device || tpm.ik.name() != pending.ik {
            return Err(EnrolmentError::Stored);
        }
        pending.state.settle(answer, pending.expires_at, at)?;
        let certificate = self
            .certify_device(&DeviceSpec {
                device: device.clone(),
                ik: tpm.ik,
                ek: tpm.ek.name(),
                validity,
            })
            .map_err(EnrolmentError::Issue)?;
        Ok(Certificate {
            device,
            certificate: certificate.to_vec(),
            root: self.certificate().to_vec(),
        })
    }

    fn examine_device(
        &self,
        request: &Request,
        roots: &TpmMakerRoots,
        at: UnixTime,
    ) -> Result<(DeviceName, CertifiedTpm), EnrolmentError> {
        let device =
            DeviceName::new(&request.device, self.domain()).map_err(EnrolmentError::DeviceName)?;
        let shown = ShownTpm {
            ek_certificate: &request.ek_certificate,
            ek_chain: &request.ek_chain,
            ek: &request.ek,
            ik: &request.ik,
        };
        let tpm = shown.examine(roots, at)?;
        check_key(&tpm.ik)?;
        Ok((device, tpm))
    }
}

/// A device's key is made from one template. A host's is under a policy, so neither is the other.
fn check_key(ik: &AttestationKey) -> Result<(), EnrolmentError> {
    let area = ik.public_area();
    if area.attributes() == DEVICE_KEY && area.auth_policy().is_empty() {
        Ok(())
    } else {
        Err(EnrolmentError::DeviceKey)
    }
}

impl Pending {
    /// The enrolment's number: a name for the file it is stored in.
    pub fn enrolment(&self) -> EnrolmentId {
        self.enrolment
    }

    /// The name the device would get. The caller must not give one name to two devices.
    pub fn device(&self) -> &DeviceName {
        &self.device
    }

    /// Name of the device's endorsement key: tells TPMs apart.
    pub fn ek(&self) -> &TpmName {
        &self.ek
    }

    /// SHA-256 value of the endorsement key alone, without the attributes that its name covers.
    pub fn ek_key(&self) -> &Digest32 {
        &self.ek_key
    }

    /// Name of the identity key to be certified.
    pub fn ik(&self) -> &TpmName {
        &self.ik
    }

    /// The issuer of the EK certificate, for people to read.
    pub fn maker(&self) -> &str {
        &self.maker
    }

    /// Whether it still waits for its answer.
    pub fn state(&self) -> &EnrolmentState {
        &self.state
    }
}
