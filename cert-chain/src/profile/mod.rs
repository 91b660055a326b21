//! What each certificate contains: written and read in one place per kind.
//!
//! | Certificate | Subject | Issuer | Basic constraints | Key usage |
//! |---|---|---|---|---|
//! | [issuer root](issuer) | `O=<domain>, CN=…` | itself | CA, path length 1 | keyCertSign, cRLSign |
//! | [host IK](host_ik) | `CN=<host>.<domain>` | root | CA, path length 0 | keyCertSign, digitalSignature |
//! | [vIK](vik) | `CN=vRoT <id>` | host IK | no CA | digitalSignature |
//! | [vRoT TLS key](tls) | `CN=vRoT <id>` | host IK | no CA | digitalSignature |
//! | [host TLS key](host_tls) | `CN=<host>.<domain>` | host IK | no CA | digitalSignature |
//! | [tenant] | `CN=<tenant>` | root | no CA | digitalSignature |
//! | [device IK](device) | `CN=<path>` | root | no CA | digitalSignature |
//! | [vRoT EK](ek) | empty | host IK | no CA | keyEncipherment or keyAgreement |

pub mod crl;
pub mod device;
pub mod ek;
pub mod host_ik;
pub mod host_tls;
pub mod issuer;
pub mod tenant;
pub mod tls;
pub mod validity;
pub mod vik;

mod fields;
mod serial_number;
mod signing;

pub use crl::{CrlSpec, RevokedCertificate};
pub use device::DeviceSpec;
pub use ek::{EkSpec, TpmDevice};
pub use host_ik::HostIkSpec;
pub use host_tls::issue_host_tls_certificate;
pub use issuer::{IssuedCertificate, Issuer};
pub use signing::{
    MAX_TBS, SIGNATURE_LENGTH, VrotCertificateSpec, issue_vrot_certificate, vrot_certificate_length,
};
pub use tenant::{TenantKey, TenantKeyError, TenantSpec, tenant_uri};
pub use tls::{TlsCertificate, TlsSpec};
pub use validity::Validity;
pub use vik::VikSpec;

pub(crate) use fields::Fields;
pub use fields::{MAX_CERTIFICATE, ProfileError};

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The revocation list would not be one that is read.
    #[error("the revocation list cannot be made")]
    Crl(#[source] crate::crl::CrlError),
    /// The device is in another issuer's domain.
    #[error("the device {device} is not in the issuer's domain {domain}")]
    DeviceOutsideDomain {
        /// The device to be certified.
        device: crate::DeviceName,
        /// The issuer's domain.
        domain: crate::Domain,
    },
    /// The issuing host's own certificate is not one.
    #[error("the host's certificate cannot issue: enrol the host again")]
    HostCertificate(#[source] ProfileError),
    /// The host is in another issuer's domain.
    #[error("the host {host} is not in the issuer's domain {domain}")]
    HostOutsideDomain {
        /// The host to be certified.
        host: crate::HostName,
        /// The issuer's domain.
        domain: crate::Domain,
    },
    /// The new certificate would already be, or never become, valid.
    #[error(
        "the issuing certificate expires before the new one begins: renew the issuing certificate"
    )]
    IssuerExpired,
    /// The issuer's key or certificate cannot be read.
    #[error("the issuer's {part} cannot be read: it must be PEM as written by `issuer init`")]
    IssuerFile {
        /// Which of the two.
        part: IssuerPart,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Key and certificate of the issuer do not belong together.
    #[error("the issuer's key is not the one in its certificate")]
    IssuerKeyMismatch,
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The signing key is not the one in the issuing certificate.
    #[error("the signing key is not the one in the host's certificate")]
    SignerMismatch,
    /// The signer failed, or its answer cannot be put into a certificate.
    #[error("the certificate could not be signed")]
    Signing(#[source] rcgen::Error),
    /// The signer returned a signature that does not verify.
    #[error("the signer returned a signature that does not verify under its own key")]
    SignatureInvalid,
    /// The TBSCertificate is longer than a restricted TPM key can sign.
    #[error(
        "the certificate's signed part has {length} bytes, a restricted TPM key signs at most \
         {MAX_TBS}: shorten host, domain or tenant name"
    )]
    TbsTooLong {
        /// Its length.
        length: usize,
    },
    /// A point in time outside the years X.509 can express.
    #[error("the validity lies outside the years a certificate can express")]
    Validity,
}

/// The two parts an issuer is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssuerPart {
    /// The self-signed root certificate.
    Certificate,
    /// The private key.
    Key,
}

impl std::fmt::Display for IssuerPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
        })
    }
}
