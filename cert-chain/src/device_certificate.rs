//! Validation of a device's certificate, with the outcome as a type.

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::claims::DeviceClaims;
use crate::device_name::DeviceName;
use crate::path::{ChainError, ChainMember, root_of_path};
use crate::profile::device::DeviceCertificate;
use crate::revocation::{CheckedRevocation, RevocationStatus};
use crate::trust_anchors::{RootValidity, TrustAnchors};

/// A device's certificate that a trusted issuer signed itself and that follows its profile.
///
/// It establishes that the issuer named this device, and which key it meant. It does not establish
/// that the device is in an acceptable state, nor that it is present: evidence does.
#[derive(Clone, Debug)]
pub struct VerifiedDeviceCertificate {
    certificate: DeviceCertificate,
    root: RootValidity,
    revocation: CheckedRevocation,
}

impl VerifiedDeviceCertificate {
    /// Validates the certificate as of `at`, compares it with its profile, and looks for it in the
    /// revocation lists that the anchors come with.
    pub fn verify(der: &[u8], anchors: &TrustAnchors, at: UnixTime) -> Result<Self, ChainError> {
        let root = root_of_path(
            ChainMember::Device,
            &CertificateDer::from(der),
            &[],
            anchors,
            at,
        )?;
        let certificate = DeviceCertificate::read(der).map_err(|source| ChainError::Profile {
            member: ChainMember::Device,
            source,
        })?;
        let subject = certificate.device().to_string();
        let revocation = anchors.revocation_of(&subject, &certificate.serial, &root.anchor, at)?;
        Ok(Self {
            certificate,
            root: root.validity,
            revocation,
        })
    }

    /// The device that it names.
    pub fn device(&self) -> &DeviceName {
        self.certificate.device()
    }

    /// What the issuer claims about the device: among others the name of its identity key, which its
    /// quote must have been made with.
    pub fn claims(&self) -> &DeviceClaims {
        self.certificate.claims()
    }

    /// The identity key as SubjectPublicKeyInfo in DER.
    pub fn subject_public_key_info(&self) -> &[u8] {
        self.certificate.subject_public_key_info()
    }

    /// The issuer's distinguished name, for people to read.
    pub fn issuer(&self) -> &str {
        self.certificate.issuer()
    }

    /// What is known about its revocation.
    pub fn revocation(&self) -> &RevocationStatus {
        self.revocation.status()
    }

    /// Until when certificate and root are valid, and the revocation list is what was demanded.
    pub fn not_after(&self) -> UnixTime {
        let valid = self.certificate.not_after().min(self.root.not_after);
        self.revocation.limit(valid)
    }
}
