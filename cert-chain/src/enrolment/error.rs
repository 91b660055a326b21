//! Why nothing was certified.

use super::message::EnrolmentId;
use super::operator::OperatorKeyError;
use crate::attestation_key::AttestationKeyError;
use crate::credential::CredentialError;
use crate::digest::Digest32;
use crate::ek_certificate::EkCertificateError;
use crate::ek_chain::EkChainError;
use crate::endorsement_key::EndorsementKeyError;
use crate::identifiers::IdentifierError;
use crate::policy::HOST_POLICY_REF;
use crate::profile::IssueError;
use crate::public_area::PublicAreaError;
use crate::times::rfc3339;

/// Why a host or device is not enrolled.
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
    #[error("no credential could be made for the TPM")]
    Credential(#[source] CredentialError),
    /// The device's identity key is not one for devices.
    #[error(
        "the identity key is none of a device: it has a policy, or other attributes than \
         `vrot-device enrol` gives it; a host's key enrols no device"
    )]
    DeviceKey,
    /// The device asks for a name that cannot be given.
    #[error("the device cannot be named as it asks")]
    DeviceName(#[source] IdentifierError),
    /// The endorsement key does not have the shape of one.
    #[error("the endorsement key is refused")]
    EndorsementKey(#[source] EndorsementKeyError),
    /// The endorsement key is not certified by an accepted TPM maker.
    #[error("the EK certificate is refused")]
    EkCertificate(#[source] EkCertificateError),
    /// The answer came too late.
    #[error("the enrolment expired at {}: start again with a new request", rfc3339(*expired_at))]
    Expired {
        /// When it expired.
        expired_at: u64,
    },
    /// The host asks for a name that cannot be given.
    #[error("the host cannot be named as it asks")]
    HostName(#[source] IdentifierError),
    /// The IK is no attestation key.
    #[error("the identity key is refused")]
    IdentityKey(#[source] AttestationKeyError),
    /// The TPM's certificates above the endorsement key's cannot be read.
    #[error("the EK certificate chain is refused")]
    EkChain(#[source] EkChainError),
    /// The certificate could not be issued.
    #[error("the certificate could not be issued")]
    Issue(#[source] IssueError),
    /// The issuer does not accept the host's operator key.
    #[error(transparent)]
    OperatorKey(#[from] OperatorKeyError),
    /// One of the public areas cannot be parsed.
    #[error("the {which} cannot be read")]
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
    #[error("the answer is wrong: the TPM does not hold both keys")]
    WrongAnswer,
}
