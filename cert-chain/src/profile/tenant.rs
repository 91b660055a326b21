//! The certificate by which a tenant is known to the managers of its VMs' hosts.
//!
//! No CA; digitalSignature; extended key usage clientAuth and no other; one name, the URI
//! `urn:vrot:tenant:<tenant>`. The issuer signs it itself: nothing that a host signs is a tenant. Its key
//! is in no TPM that anybody vouches for.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateSigningRequestDer, UnixTime};
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

use super::fields::{Fields, KeyPurposes, ProfileError};
use super::serial_number::serial_number;
use super::{IssueError, Validity};
use crate::identifiers::Tenant;
use crate::pem;
use crate::serial::CertificateSerial;

/// What the issuer certifies about a tenant.
#[derive(Clone, Debug)]
pub struct TenantSpec {
    /// The tenant.
    pub tenant: Tenant,
    /// Its key.
    pub key: TenantKey,
    /// When the certificate is valid.
    pub validity: Validity,
}

/// A tenant's public key, on P-256 or P-384, whose private one signed that it is to be certified, or was
/// made here.
#[derive(Clone, Debug)]
pub struct TenantKey {
    point: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

/// Why a tenant's key is not certified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantKeyError {
    /// A key of another kind.
    #[error(
        "the key is not on P-256 (signing with SHA-256) or P-384 (with SHA-384): make such a one"
    )]
    Kind,
    /// Not a request at all.
    #[error("it is not one PEM block `CERTIFICATE REQUEST`: {0}")]
    Pem(#[source] pem::FileError),
    /// A request that does not verify, or asks for what is not granted.
    #[error(
        "the request cannot be read, is not signed by its key, or has extensions other than usual"
    )]
    Request(#[source] rcgen::Error),
}

impl TenantKey {
    /// The key in a request (PKCS #10) in PEM. What else it asks for is not heeded.
    pub fn of_request(pem: &[u8]) -> Result<Self, TenantKeyError> {
        let block = pem::only_block(pem).map_err(TenantKeyError::Pem)?;
        let request = CertificateSigningRequestDer::from(block.contents.to_vec());
        let request = CertificateSigningRequestParams::from_der(&request);
        Self::of(&request.map_err(TenantKeyError::Request)?.public_key)
    }

    /// A new key on P-256, and its private half as PKCS #8 in PEM.
    pub fn generate() -> Result<(Self, Zeroizing<String>), IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Signing)?;
        let public = Self {
            point: key.der_bytes().to_vec(),
            algorithm: &PKCS_ECDSA_P256_SHA256,
        };
        Ok((public, Zeroizing::new(key.serialize_pem())))
    }

    fn of(key: &impl PublicKeyData) -> Result<Self, TenantKeyError> {
        let known = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384];
        let algorithm = known.into_iter().find(|known| *known == key.algorithm());
        Ok(Self {
            point: key.der_bytes().to_vec(),
            algorithm: algorithm.ok_or(TenantKeyError::Kind)?,
        })
    }
}

impl PublicKeyData for TenantKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// A tenant's certificate, read and found to follow the profile. Its signature is not checked here;
/// [`crate::VerifiedTenantCertificate::verify`] does that.
#[derive(Clone, Debug)]
pub(crate) struct TenantCertificate {
    pub(crate) tenant: Tenant,
    pub(crate) serial: CertificateSerial,
    pub(crate) not_after: UnixTime,
}

/// Begins the one name in a tenant's certificate.
pub const TENANT_URI: &str = "urn:vrot:tenant:";

const CLIENT_PURPOSE: KeyPurposes = KeyPurposes {
    exactly: &["clientAuth"],
    shown: "clientAuth",
};

/// A tenant's name as it stands in its certificate.
pub fn tenant_uri(tenant: &Tenant) -> String {
    format!("{TENANT_URI}{tenant}")
}

pub(super) fn params(spec: &TenantSpec) -> Result<CertificateParams, IssueError> {
    let uri = tenant_uri(&spec.tenant);
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    (params.distinguished_name).push(DnType::CommonName, spec.tenant.to_string());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(IssueError::Signing)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

impl TenantCertificate {
    /// Reads the certificate and compares it with the profile.
    pub(crate) fn read(der: &[u8]) -> Result<Self, ProfileError> {
        let fields = Fields::read(der)?;
        fields.check_extensions_parse()?;
        fields.check_end_entity("tenant (no CA)", CLIENT_PURPOSE)?;
        let names = ProfileError::Names {
            field: "subject alternative name",
        };
        let [GeneralName::URI(uri)] = fields.alternative_names()? else {
            return Err(names);
        };
        let name = uri.strip_prefix(TENANT_URI).ok_or(names)?;
        let tenant: Tenant = name.parse().map_err(ProfileError::Tenant)?;
        if fields.only_common_name() != Some(name) {
            return Err(ProfileError::Names { field: "subject" });
        }
        Ok(Self {
            tenant,
            serial: fields.serial(),
            not_after: fields.not_after(),
        })
    }
}
