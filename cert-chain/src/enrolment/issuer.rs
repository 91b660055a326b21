//! The issuer's side with hosts: checks before anything is signed, and one chance to answer.

use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::error::EnrolmentError;
use super::message::{Answer, Certificate, Challenge, EnrolmentId, Request};
use super::operator::OperatorKeys;
use super::tpm::{CertifiedTpm, EnrolmentState, PENDING_LIFETIME, ShownTpm, parse};
use crate::attestation_key::AttestationKey;
use crate::digest::Digest32;
use crate::ek_certificate::TpmMakerRoots;
use crate::identifiers::HostName;
use crate::name::TpmName;
use crate::policy::{HOST_POLICY_REF, authorize_digest};
use crate::profile::{HostIkSpec, Issuer, Validity};
use crate::public_area::ObjectAttributes;

/// An enrolment that was challenged. The issuer stores it until the answer comes, and stores
/// it again after [`Issuer::certify`], whatever came of that: it is then spent.
///
/// It holds a digest of the secret, not the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingEnrolment {
    enrolment: EnrolmentId,
    host: HostName,
    ik: TpmName,
    ek: TpmName,
    ek_key: Digest32,
    policy_key: TpmName,
    maker: String,
    /// What was asked, to be looked at again before it is granted.
    request: Request,
    /// Unix time.
    expires_at: u64,
    state: EnrolmentState,
}

/// What an issuer accepts of hosts at the time.
#[derive(Clone, Copy, Debug)]
pub struct Accepted<'a> {
    /// Makers of TPMs.
    pub roots: &'a TpmMakerRoots,
    /// Operators.
    pub operators: &'a OperatorKeys,
}

/// A host whose request is in order.
struct Asking {
    host: HostName,
    tpm: CertifiedTpm,
    policy_key: TpmName,
}

impl Issuer {
    /// Checks a request and makes the challenge for it.
    ///
    /// Refused are: an endorsement key without a certificate that leads to an accepted maker, an
    /// identity key that is no attestation key, and one that could be used without a PCR policy that
    /// an accepted operator approved. Whether the name is the right one, and had the same operator
    /// before, is for the caller to judge ([`PendingEnrolment::host`],
    /// [`PendingEnrolment::policy_key`]).
    pub fn challenge(
        &self,
        request: &Request,
        accepted: Accepted<'_>,
        at: UnixTime,
    ) -> Result<(Challenge, PendingEnrolment), EnrolmentError> {
        let asking = self.examine(request, accepted, at)?;

        let asked = asking.tpm.ask()?;
        let challenge = Challenge {
            enrolment: asked.enrolment,
            host: asking.host.clone(),
            credential: asked.credential,
        };
        let pending = PendingEnrolment {
            enrolment: asked.enrolment,
            ik: asking.tpm.ik.name(),
            ek: asking.tpm.ek.name(),
            ek_key: asking.tpm.ek.key_digest(),
            host: asking.host,
            policy_key: asking.policy_key,
            maker: asking.tpm.maker,
            request: request.clone(),
            expires_at: at.as_secs().saturating_add(PENDING_LIFETIME.as_secs()),
            state: asked.state,
        };
        Ok((challenge, pending))
    }

    /// Checks the answer and certifies the host's IK.
    ///
    /// What the issuer accepts may have changed since the challenge, so all of the request is
    /// looked at again; a refusal for that does not spend `pending`. The first answer that names it
    /// does, even a wrong one.
    pub fn certify(
        &self,
        pending: &mut PendingEnrolment,
        answer: &Answer,
        accepted: Accepted<'_>,
        validity: Validity,
        at: UnixTime,
    ) -> Result<Certificate, EnrolmentError> {
        if answer.enrolment != pending.enrolment {
            return Err(EnrolmentError::AnotherEnrolment {
                found: answer.enrolment,
                expected: pending.enrolment,
            });
        }
        let asking = self.examine(&pending.request, accepted, at)?;
        // Storage is not proof.
        if asking.host != pending.host || asking.tpm.ik.name() != pending.ik {
            return Err(EnrolmentError::Stored);
        }
        pending.state.settle(answer, pending.expires_at, at)?;
        let certificate = self
            .certify_host(&HostIkSpec {
                host: asking.host.clone(),
                ik: asking.tpm.ik,
                ek: asking.tpm.ek.name(),
                policy_key: asking.policy_key,
                validity,
            })
            .map_err(EnrolmentError::Issue)?;
        Ok(Certificate {
            host: asking.host,
            certificate: certificate.to_vec(),
            root: self.certificate().to_vec(),
        })
    }

    /// Everything that can be known of a request without its host's TPM.
    fn examine(
        &self,
        request: &Request,
        accepted: Accepted<'_>,
        at: UnixTime,
    ) -> Result<Asking, EnrolmentError> {
        let host = HostName::new(&request.host, self.domain()).map_err(EnrolmentError::HostName)?;
        let shown = ShownTpm {
            ek_certificate: &request.ek_certificate,
            ek_chain: &request.ek_chain,
            ek: &request.ek,
            ik: &request.ik,
        };
        let tpm = shown.examine(accepted.roots, at)?;
        let policy_key = parse(&request.policy_key, "policy key")?.name();
        accepted.operators.check(&policy_key)?;
        check_policy(&tpm.ik, &policy_key, &request.policy_ref)?;
        Ok(Asking {
            host,
            tpm,
            policy_key,
        })
    }
}

impl PendingEnrolment {
    /// The enrolment's number: a name for the file it is stored in.
    pub fn enrolment(&self) -> EnrolmentId {
        self.enrolment
    }

    /// The name the host would get. The caller must not give one name to two hosts.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Name of the host's endorsement key: tells physical TPMs apart.
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

    /// Name of the operator key that approves the host's PCR policies.
    pub fn policy_key(&self) -> &TpmName {
        &self.policy_key
    }

    /// The issuer of the EK certificate, for people to read.
    pub fn maker(&self) -> &str {
        &self.maker
    }

    /// Until when an answer is accepted, as Unix time.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Whether it still waits for its answer.
    pub fn state(&self) -> &EnrolmentState {
        &self.state
    }
}

fn check_policy(
    ik: &AttestationKey,
    policy_key: &TpmName,
    policy_ref: &[u8],
) -> Result<(), EnrolmentError> {
    if policy_ref != HOST_POLICY_REF {
        return Err(EnrolmentError::PolicyReference {
            found: hex::encode(policy_ref),
        });
    }
    let area = ik.public_area();
    if area.attributes().contains(ObjectAttributes::USER_WITH_AUTH) {
        return Err(EnrolmentError::PolicyBypassed);
    }
    let expected = authorize_digest(policy_key, policy_ref);
    if area.auth_policy() != expected.as_bytes() {
        return Err(EnrolmentError::PolicyMismatch {
            found: hex::encode(area.auth_policy()),
            expected,
        });
    }
    Ok(())
}
