//! The issuer's side: checks before anything is signed, and one chance to answer.

use std::time::Duration;

use hmac::{Hmac, Mac};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::message::{Answer, Certificate, Challenge, EnrolmentId, Request};
use super::operator::{OperatorKeyError, OperatorKeys};
use crate::attestation_key::{AttestationKey, AttestationKeyError};
use crate::credential::{CredentialError, MAX_SECRET, make_credential};
use crate::ek_certificate::{CertifiedEndorsementKey, EkCertificateError, TpmMakerRoots};
use crate::ek_chain::{EkChain, EkChainError};
use crate::endorsement_key::{EndorsementKey, EndorsementKeyError};
use crate::identifiers::{Digest32, HostName, IdentifierError};
use crate::name::TpmName;
use crate::policy::{HOST_POLICY_REF, authorize_digest};
use crate::profile::{HostIkSpec, IssueError, Issuer, Validity};
use crate::public_area::{ObjectAttributes, PublicArea, PublicAreaError};

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

/// What an issuer accepts at the time.
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
    ek: EndorsementKey,
    ik: AttestationKey,
    policy_key: TpmName,
    maker: String,
}

/// What has become of an enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolmentState {
    /// Waits for the answer whose HMAC under the enrolment's number this is.
    Waiting(Digest32),
    /// An answer has come, right or wrong.
    Answered,
}

/// Why a host is not enrolled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// The answer belongs to another enrolment.
    #[error("the answer belongs to enrolment {found}, not to {expected}")]
    AnotherEnrolment {
        /// The number in the answer.
        found: EnrolmentId,
        /// The number of the pending enrolment.
        expected: EnrolmentId,
    },
    /// The enrolment was answered before.
    #[error("the enrolment was answered before: start again with a new request")]
    AlreadyAnswered,
    /// The credential could not be made.
    #[error("no credential could be made for the host")]
    Credential(#[source] CredentialError),
    /// The endorsement key does not have the shape of one.
    #[error("the host's endorsement key is refused")]
    EndorsementKey(#[source] EndorsementKeyError),
    /// The endorsement key is not certified by an accepted TPM maker.
    #[error("the host's EK certificate is refused")]
    EkCertificate(#[source] EkCertificateError),
    /// The answer came too late.
    #[error("the enrolment expired at {expired_at} (Unix time): start again with a new request")]
    Expired {
        /// When it expired.
        expired_at: u64,
    },
    /// The host asks for a name that cannot be given.
    #[error("the host cannot be named as it asks")]
    HostName(#[source] IdentifierError),
    /// The IK is no attestation key.
    #[error("the host's identity key is refused")]
    IdentityKey(#[source] AttestationKeyError),
    /// The TPM's certificates above the endorsement key's cannot be read.
    #[error("the host's EK certificate chain is refused")]
    EkChain(#[source] EkChainError),
    /// The certificate could not be issued.
    #[error("the certificate could not be issued")]
    Issue(#[source] IssueError),
    /// The issuer does not accept the host's operator key.
    #[error(transparent)]
    OperatorKey(#[from] OperatorKeyError),
    /// One of the public areas cannot be parsed.
    #[error("the host's {which} cannot be read")]
    PublicArea {
        /// Which key.
        which: &'static str,
        /// Why.
        #[source]
        source: PublicAreaError,
    },
    /// The IK can be used without satisfying its policy.
    #[error(
        "the host's identity key can be used without its policy (userWithAuth is set): it would \
         sign on a host whose boot was altered"
    )]
    PolicyBypassed,
    /// The IK's policy is not the stated `PolicyAuthorize`.
    #[error(
        "the host's identity key has policy {found}, but PolicyAuthorize for the stated operator \
         key is {expected}"
    )]
    PolicyMismatch {
        /// The policy found, in hexadecimal.
        found: String,
        /// The policy computed.
        expected: Digest32,
    },
    /// The IK accepts approvals for another purpose.
    #[error(
        "the host's policy reference is {found}: approvals for it are not those of a host's boot, \
         whose reference is {}",
        hex::encode(HOST_POLICY_REF)
    )]
    PolicyReference {
        /// The reference found, in hexadecimal.
        found: String,
    },
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The stored enrolment was damaged.
    #[error("the stored enrolment is damaged: start again with a new request")]
    Stored,
    /// The secret is wrong.
    #[error("the answer is wrong: the host's TPM does not hold both keys")]
    WrongAnswer,
}

/// How long an answer may take: long enough to carry files to a host by hand.
pub const PENDING_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

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

        let mut id = [0; 16];
        let mut secret = Zeroizing::new([0; MAX_SECRET]);
        let random = SystemRandom::new();
        random
            .fill(&mut id)
            .and_then(|()| random.fill(secret.as_mut()))
            .map_err(|_| EnrolmentError::Random)?;
        let enrolment = EnrolmentId::new(id);
        let credential = make_credential(&asking.ek, &asking.ik.name(), secret.as_ref())
            .map_err(EnrolmentError::Credential)?;

        let challenge = Challenge {
            enrolment,
            host: asking.host.clone(),
            credential,
        };
        let tag: [u8; 32] = mac(&enrolment, secret.as_ref())
            .finalize()
            .into_bytes()
            .into();
        let pending = PendingEnrolment {
            enrolment,
            ik: asking.ik.name(),
            ek: asking.ek.name(),
            ek_key: asking.ek.key_digest(),
            host: asking.host,
            policy_key: asking.policy_key,
            maker: asking.maker,
            request: request.clone(),
            expires_at: at.as_secs().saturating_add(PENDING_LIFETIME.as_secs()),
            state: EnrolmentState::Waiting(Digest32::new(tag)),
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
        if asking.host != pending.host || asking.ik.name() != pending.ik {
            return Err(EnrolmentError::Stored);
        }
        let EnrolmentState::Waiting(tag) =
            std::mem::replace(&mut pending.state, EnrolmentState::Answered)
        else {
            return Err(EnrolmentError::AlreadyAnswered);
        };
        if at.as_secs() > pending.expires_at {
            return Err(EnrolmentError::Expired {
                expired_at: pending.expires_at,
            });
        }
        // `verify_slice` compares in constant time.
        mac(&pending.enrolment, &answer.secret)
            .verify_slice(tag.as_bytes())
            .map_err(|_| EnrolmentError::WrongAnswer)?;

        let certificate = self
            .certify_host(&HostIkSpec {
                host: asking.host.clone(),
                ik: asking.ik,
                ek: asking.ek.name(),
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
        let ek: EndorsementKey = parse(&request.ek, "endorsement key")?
            .try_into()
            .map_err(EnrolmentError::EndorsementKey)?;
        let chain = EkChain::read(&request.ek_chain).map_err(EnrolmentError::EkChain)?;
        let certified = CertifiedEndorsementKey::verify(
            &request.ek_certificate,
            &chain,
            &ek,
            accepted.roots,
            at,
        )
        .map_err(EnrolmentError::EkCertificate)?;
        let ik: AttestationKey = parse(&request.ik, "identity key")?
            .try_into()
            .map_err(EnrolmentError::IdentityKey)?;
        let policy_key = parse(&request.policy_key, "policy key")?.name();
        accepted.operators.check(&policy_key)?;
        check_policy(&ik, &policy_key, &request.policy_ref)?;
        Ok(Asking {
            host,
            ek,
            ik,
            policy_key,
            maker: certified.issuer().to_owned(),
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

fn parse(tpmt_public: &[u8], which: &'static str) -> Result<PublicArea, EnrolmentError> {
    PublicArea::parse(tpmt_public).map_err(|source| EnrolmentError::PublicArea { which, source })
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

/// A digest of the secret, different for every enrolment.
fn mac(enrolment: &EnrolmentId, secret: &[u8]) -> Hmac<Sha256> {
    match <Hmac<Sha256> as Mac>::new_from_slice(enrolment.as_bytes()) {
        Ok(mac) => mac.chain_update(secret),
        // HMAC is defined for keys of every length (RFC 2104 §2).
        Err(error) => unreachable!("HMAC key: {error}"),
    }
}
