//! The identity issuer: a root certificate and the key that certifies hosts and devices.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

use super::device::{self, DeviceSpec};
use super::fields::{Fields, ProfileError};
use super::host_ik::{self, HostIkSpec, every_ip_address};
use super::serial_number::serial_number;
use super::tenant::{self, TenantSpec};
use super::{IssueError, IssuerPart, Validity};
use crate::digest::Digest32;
use crate::identifiers::Domain;
use crate::pem;
use crate::serial::CertificateSerial;

/// A certification authority for the hosts and devices of one domain, and for tenants (27071's identity issuer).
///
/// The root is itself confined to the domain: a stolen issuer key names no host outside it.
pub struct Issuer {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    domain: Domain,
}

/// A certificate that an issuer made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Its number.
    pub serial: CertificateSerial,
    /// Whom it names: a host's DNS name, or a device's or tenant's URI.
    pub subject: String,
    /// SHA-256 value of its key, as SubjectPublicKeyInfo in DER.
    pub key: Digest32,
    /// The last second of its validity.
    pub not_after: UnixTime,
}

/// The root's common name; the domain stands beside it as organization.
const COMMON_NAME: &str = "vRoT identity issuer";

impl Issuer {
    /// Makes a key and a self-signed root for `domain`.
    pub fn create(domain: Domain, validity: Validity) -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let certificate = params(&domain, validity)?
            .self_signed(&key)
            .map_err(IssueError::Signing)?
            .into();
        Ok(Self {
            key,
            certificate,
            domain,
        })
    }

    /// Reads what [`Issuer::key_pem`] and [`Issuer::certificate_pem`] wrote.
    pub fn from_pem(key: &str, certificate: &str) -> Result<Self, IssueError> {
        let unreadable = |part, source: Box<dyn std::error::Error + Send + Sync>| {
            IssueError::IssuerFile { part, source }
        };
        let key =
            KeyPair::from_pem(key).map_err(|error| unreadable(IssuerPart::Key, Box::new(error)))?;
        let certificate = pem::only_block(certificate.as_bytes())
            .map_err(|error| unreadable(IssuerPart::Certificate, Box::new(error)))?;
        let certificate = CertificateDer::from(certificate.contents.to_vec());
        let (domain, subject_public_key_info) = read(&certificate)
            .map_err(|error| unreadable(IssuerPart::Certificate, Box::new(error)))?;
        if subject_public_key_info != key.subject_public_key_info() {
            return Err(IssueError::IssuerKeyMismatch);
        }
        Ok(Self {
            key,
            certificate,
            domain,
        })
    }

    /// The private key as PKCS#8 in PEM. Store it where nobody else can read it.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// The root certificate in PEM: what verifiers take as trust anchor.
    pub fn certificate_pem(&self) -> String {
        pem::encode_certificate(&self.certificate)
    }

    /// The root certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The domain in which this issuer names hosts.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Certifies a host's IK without further questions. [`Issuer::challenge`] asks them.
    pub fn certify_host(&self, spec: &HostIkSpec) -> Result<CertificateDer<'static>, IssueError> {
        if spec.host.domain() != &self.domain {
            return Err(IssueError::HostOutsideDomain {
                host: spec.host.clone(),
                domain: self.domain.clone(),
            });
        }
        self.sign(host_ik::params(spec)?, spec.validity, spec.ik.public_area())
    }

    /// Certifies a device's identity key without further questions. [`Issuer::challenge_device`] asks
    /// them.
    pub fn certify_device(&self, spec: &DeviceSpec) -> Result<CertificateDer<'static>, IssueError> {
        if spec.device.domain() != &self.domain {
            return Err(IssueError::DeviceOutsideDomain {
                device: spec.device.clone(),
                domain: self.domain.clone(),
            });
        }
        self.sign(device::params(spec)?, spec.validity, spec.ik.public_area())
    }

    /// Certifies a tenant, without any question.
    pub fn certify_tenant(&self, spec: &TenantSpec) -> Result<CertificateDer<'static>, IssueError> {
        self.sign(tenant::params(spec)?, spec.validity, &spec.key)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, IssueError> {
        let root = Fields::read(&self.certificate).map_err(IssueError::HostCertificate)?;
        validity.within(root.not_after())?.apply(&mut params);
        let certificate = params
            .signed_by(key, &self.signer()?)
            .map_err(IssueError::Signing)?;
        Ok(certificate.into())
    }

    /// What a certificate of a host or device is, if this issuer made it.
    pub fn recognise(&self, der: &[u8]) -> Option<IssuedCertificate> {
        let (root, fields) = (
            Fields::read(&self.certificate).ok()?,
            Fields::read(der).ok()?,
        );
        let [GeneralName::DNSName(subject) | GeneralName::URI(subject)] =
            fields.alternative_names().ok()?
        else {
            return None;
        };
        fields.is_signed_by(&root).then(|| IssuedCertificate {
            serial: fields.serial(),
            subject: (*subject).to_owned(),
            key: Digest32::of(fields.subject_public_key_info()),
            not_after: fields.not_after(),
        })
    }

    pub(super) fn signer(&self) -> Result<rcgen::Issuer<'_, &KeyPair>, IssueError> {
        rcgen::Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(IssueError::Signing)
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

fn params(domain: &Domain, validity: Validity) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, domain.as_str());
    params
        .distinguished_name
        .push(DnType::CommonName, COMMON_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_string())],
        excluded_subtrees: every_ip_address(),
    });
    validity.apply(&mut params);
    Ok(params)
}

fn read(certificate: &[u8]) -> Result<(Domain, Vec<u8>), ProfileError> {
    let fields = Fields::read(certificate)?;
    fields.check_extensions_parse()?;
    if fields.basic_constraints()? != (true, Some(1)) {
        return Err(ProfileError::BasicConstraints {
            profile: "issuer root (CA with path length 1)",
        });
    }
    let domain = fields
        .subject()
        .iter_organization()
        .next()
        .and_then(|organization| organization.as_str().ok())
        .ok_or(ProfileError::Names { field: "subject" })?
        .parse()
        .map_err(ProfileError::HostName)?;
    Ok((domain, fields.subject_public_key_info().to_vec()))
}
