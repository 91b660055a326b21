//! The certificate of a host's identity key (host IK), which issues its vRoTs' certificates.
//!
//! CA with path length 0, confined by critical name constraints to the names below
//! `<host>.<domain>` and to no IP address at all; keyCertSign and digitalSignature (it signs
//! quotes as well); DNS name of the host; [`HostClaims`].

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree,
    IsCa, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;

use super::fields::{DIGITAL_SIGNATURE, Fields, ProfileError};
use super::serial_number::serial_number;
use super::{IssueError, Validity};
use crate::attestation_key::AttestationKey;
use crate::claims::HostClaims;
use crate::identifiers::HostName;
use crate::name::TpmName;
use crate::serial::CertificateSerial;

/// What the issuer certifies about a host.
#[derive(Clone, Debug)]
pub struct HostIkSpec {
    /// The host's name; it must be in the issuer's domain.
    pub host: HostName,
    /// The host's identity key.
    pub ik: AttestationKey,
    /// Name of the endorsement key that the IK was proven to live beside.
    pub ek: TpmName,
    /// Name of the key that approves the host's PCR policies.
    pub policy_key: TpmName,
    /// When the certificate is valid.
    pub validity: Validity,
}

/// A host's certificate, read and found to follow the profile. Its signature is not checked
/// here; [`crate::VikChain::verify`] does that.
#[derive(Clone, Debug)]
pub struct HostCertificate {
    der: CertificateDer<'static>,
    host: HostName,
    serial: CertificateSerial,
    claims: HostClaims,
    subject_public_key_info: Vec<u8>,
    issuer: String,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl HostCertificate {
    /// Reads the certificate and compares it with the profile.
    pub fn read(der: &[u8]) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        fields.check_extensions_parse()?;
        if fields.basic_constraints()? != (true, Some(0)) {
            return Err(ProfileError::BasicConstraints {
                profile: "host (CA with path length 0)",
            });
        }
        let usage_matches = fields
            .key_usage()?
            .is_some_and(|usage| usage.flags == DIGITAL_SIGNATURE | KEY_CERT_SIGN);
        if !usage_matches {
            return Err(ProfileError::KeyUsage {
                expected: "digitalSignature and keyCertSign",
            });
        }
        let host = read_host_name(&fields)?;
        check_name_constraints(&fields, &host)?;
        let claims = HostClaims::from_extension(fields.claims()?).map_err(ProfileError::Claims)?;
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            host,
            serial: fields.serial(),
            claims,
            subject_public_key_info: fields.subject_public_key_info().to_vec(),
            issuer: fields.issuer_text(),
            not_before: fields.not_before(),
            not_after: fields.not_after(),
        })
    }

    /// The certificate itself.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The host it names.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Its number, by which the issuer may have revoked it.
    pub fn serial(&self) -> &CertificateSerial {
        &self.serial
    }

    /// What the issuer claims about the host.
    pub fn claims(&self) -> &HostClaims {
        &self.claims
    }

    /// The host IK as SubjectPublicKeyInfo in DER.
    pub fn subject_public_key_info(&self) -> &[u8] {
        &self.subject_public_key_info
    }

    /// The issuer's distinguished name, for people to read.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// First second of its validity.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Last second of its validity.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// As `x509_parser` counts bits.
const KEY_CERT_SIGN: u16 = 1 << 5;

pub(super) fn params(spec: &HostIkSpec) -> Result<CertificateParams, IssueError> {
    let name = spec.host.to_string();
    let dns_name = || {
        name.as_str()
            .try_into()
            .map_err(|_| IssueError::Signing(rcgen::Error::CouldNotParseCertificate))
    };
    let claims = HostClaims {
        ik: spec.ik.name(),
        ek: spec.ek.clone(),
        policy_key: spec.policy_key.clone(),
    };

    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, name.as_str());
    params.subject_alt_names = vec![SanType::DnsName(dns_name()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
    ];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(name.clone())],
        excluded_subtrees: every_ip_address(),
    });
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![claims.extension()];
    Ok(params)
}

/// Excluded, because no subject below our roots is named by an IP address.
pub(super) fn every_ip_address() -> Vec<GeneralSubtree> {
    vec![
        GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
        GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
    ]
}

fn read_host_name(fields: &Fields<'_>) -> Result<HostName, ProfileError> {
    let name = fields
        .only_common_name()
        .ok_or(ProfileError::Names { field: "subject" })?;
    match fields.alternative_names()? {
        [GeneralName::DNSName(dns)] if *dns == name => {}
        _ => {
            return Err(ProfileError::Names {
                field: "subject alternative name",
            });
        }
    }
    name.parse().map_err(ProfileError::HostName)
}

fn check_name_constraints(fields: &Fields<'_>, host: &HostName) -> Result<(), ProfileError> {
    let constraints = fields
        .name_constraints()?
        .ok_or(ProfileError::NameConstraints)?;
    let permitted = constraints.permitted_subtrees.as_deref().unwrap_or(&[]);
    match permitted {
        [subtree] => match &subtree.base {
            GeneralName::DNSName(name) if *name == host.to_string() => Ok(()),
            _ => Err(ProfileError::NameConstraints),
        },
        _ => Err(ProfileError::NameConstraints),
    }
}
