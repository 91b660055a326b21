//! The certificate of a device's identity key.
//!
//! No CA; digitalSignature; extended key usage `tcg-kp-AIKCertificate`, as a vIK's, for it is an
//! attestation key as well; one name, the URI `spiffe://<domain>/<path>`; [`DeviceClaims`]. The issuer
//! signs it itself: nothing that a host signs is a device.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::UnixTime;
use x509_parser::extensions::GeneralName;

use super::fields::{Fields, ProfileError};
use super::serial_number::serial_number;
use super::vik::{AIK_PURPOSE, AIK_PURPOSES};
use super::{IssueError, Validity};
use crate::attestation_key::AttestationKey;
use crate::claims::DeviceClaims;
use crate::device_name::DeviceName;
use crate::name::TpmName;
use crate::serial::CertificateSerial;

/// What the issuer certifies about a device.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// The device's name; it must be in the issuer's domain.
    pub device: DeviceName,
    /// The device's identity key.
    pub ik: AttestationKey,
    /// Name of the endorsement key that the identity key was proven to live beside.
    pub ek: TpmName,
    /// When the certificate is valid.
    pub validity: Validity,
}

/// A device's certificate, read and found to follow the profile. Its signature is not checked here;
/// [`crate::VerifiedDeviceCertificate::verify`] does that.
#[derive(Clone, Debug)]
pub struct DeviceCertificate {
    device: DeviceName,
    pub(crate) serial: CertificateSerial,
    claims: DeviceClaims,
    subject_public_key_info: Vec<u8>,
    issuer: String,
    not_after: UnixTime,
}

pub(super) fn params(spec: &DeviceSpec) -> Result<CertificateParams, IssueError> {
    let claims = DeviceClaims {
        ik: spec.ik.name(),
        ek: spec.ek.clone(),
    };
    let uri = spec.device.to_string();
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, spec.device.path());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(IssueError::Signing)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(AIK_PURPOSE.to_vec())];
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![claims.extension()];
    Ok(params)
}

impl DeviceCertificate {
    /// Reads the certificate and compares it with the profile.
    pub fn read(der: &[u8]) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        fields.check_extensions_parse()?;
        fields.check_end_entity("device (no CA)", AIK_PURPOSES)?;
        let device = read_name(&fields)?;
        let claims =
            DeviceClaims::from_extension(fields.claims()?).map_err(ProfileError::Claims)?;
        Ok(Self {
            device,
            serial: fields.serial(),
            claims,
            subject_public_key_info: fields.subject_public_key_info().to_vec(),
            issuer: fields.issuer_text(),
            not_after: fields.not_after(),
        })
    }
}

impl DeviceCertificate {
    /// The device that it names.
    pub fn device(&self) -> &DeviceName {
        &self.device
    }

    /// What the issuer claims about the device.
    pub fn claims(&self) -> &DeviceClaims {
        &self.claims
    }

    /// The identity key as SubjectPublicKeyInfo in DER.
    pub fn subject_public_key_info(&self) -> &[u8] {
        &self.subject_public_key_info
    }

    /// The issuer's distinguished name, for people to read.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Last second of its validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

fn read_name(fields: &Fields<'_>) -> Result<DeviceName, ProfileError> {
    let [GeneralName::URI(uri)] = fields.alternative_names()? else {
        return Err(ProfileError::Names {
            field: "subject alternative name",
        });
    };
    let device: DeviceName = uri.parse().map_err(ProfileError::DeviceName)?;
    if fields.only_common_name() != Some(device.path()) {
        return Err(ProfileError::Names { field: "subject" });
    }
    Ok(device)
}
