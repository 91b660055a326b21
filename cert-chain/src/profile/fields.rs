//! The fields of a certificate that our profiles look at, read strictly.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{
    ExtendedKeyUsage, GeneralName, KeyUsage, NameConstraints, ParsedExtension,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use crate::claims::{CMW_OID, ClaimsError};
use crate::serial::CertificateSerial;

/// How a certificate departs from its profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Basic constraints other than the profile's.
    #[error("the certificate's basic constraints are not those of a {profile}")]
    BasicConstraints {
        /// What the certificate should be.
        profile: &'static str,
    },
    /// The claims extension cannot be understood.
    #[error("the certificate's claims cannot be read")]
    Claims(#[source] ClaimsError),
    /// There is no claims extension.
    #[error("the certificate carries no claims (extension 1.3.6.1.5.5.7.1.35)")]
    ClaimsMissing,
    /// Claims and another field of the certificate disagree.
    #[error("the certificate's claims contradict its {field}")]
    ClaimsContradict {
        /// The field they disagree with.
        field: &'static str,
    },
    /// A name that breaks the rules for devices' names.
    #[error("the certificate names no acceptable device")]
    DeviceName(#[source] crate::identifiers::IdentifierError),
    /// An extended key usage other than the profile's.
    #[error("the certificate's extended key usage is not exactly {expected}")]
    ExtendedKeyUsage {
        /// The one key purpose it should have.
        expected: &'static str,
    },
    /// A name that breaks the rules for host names.
    #[error("the certificate names no acceptable host")]
    HostName(#[source] crate::identifiers::IdentifierError),
    /// A key usage other than the profile's.
    #[error("the certificate's key usage is not exactly {expected}")]
    KeyUsage {
        /// The usages it should have.
        expected: &'static str,
    },
    /// The certificate is not DER that follows RFC 5280.
    #[error("the certificate is malformed")]
    Malformed,
    /// Name constraints other than the profile's.
    #[error("the certificate is not confined to the names below its own host name")]
    NameConstraints,
    /// Subject or subject alternative names other than the profile's.
    #[error("the certificate's {field} is not the profile's")]
    Names {
        /// Which field.
        field: &'static str,
    },
    /// A name that breaks the rules for tenants.
    #[error("the certificate names no acceptable tenant")]
    Tenant(#[source] crate::identifiers::IdentifierError),
    /// More bytes than a certificate of this profile has.
    #[error("a certificate of {length} bytes is too long (at most {MAX_CERTIFICATE})")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// The longest certificate of ours: a TBSCertificate of 1,024 bytes and an ECDSA signature for
/// a leaf, somewhat more for a host's or root's, which no TPM signs.
pub const MAX_CERTIFICATE: usize = 4096;

/// Bits as `x509_parser` counts them (RFC 5280 §4.2.1.3, first bit lowest).
pub(super) const DIGITAL_SIGNATURE: u16 = 1;

/// The extended key usage of a profile.
#[derive(Clone, Copy)]
pub(super) struct KeyPurposes {
    /// As [`Fields::key_purposes`] has them.
    pub(super) exactly: &'static [&'static str],
    /// In words.
    pub(super) shown: &'static str,
}

/// One parsed certificate, with accessors that refuse what a profile does not allow.
pub(crate) struct Fields<'a> {
    certificate: X509Certificate<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) fn read(der: &'a [u8]) -> Result<Self, ProfileError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(ProfileError::TooLong { length: der.len() });
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| ProfileError::Malformed)?;
        // The map refuses duplicate extensions (RFC 5280 §4.2).
        if !rest.is_empty() || certificate.extensions_map().is_err() {
            return Err(ProfileError::Malformed);
        }
        Ok(Self { certificate })
    }

    pub(crate) fn serial(&self) -> CertificateSerial {
        CertificateSerial::new(self.certificate.raw_serial())
    }

    /// Whether this certificate names the other one's subject as its issuer, and carries the signature
    /// of its key, on P-256.
    pub(super) fn is_signed_by(&self, issuer: &Fields<'_>) -> bool {
        let key = &issuer.certificate.public_key().subject_public_key.data;
        let verified = webpki::ring::ECDSA_P256_SHA256.verify_signature(
            key,
            self.certificate.tbs_certificate.as_ref(),
            &self.certificate.signature_value.data,
        );
        let named = self.certificate.issuer().as_raw() == issuer.certificate.subject().as_raw();
        named && verified.is_ok()
    }

    pub(super) fn subject_public_key_info(&self) -> &'a [u8] {
        self.certificate.tbs_certificate.subject_pki.raw
    }

    pub(crate) fn issuer_text(&self) -> String {
        self.certificate.issuer().to_string()
    }

    pub(crate) fn subject_text(&self) -> String {
        self.certificate.subject().to_string()
    }

    pub(super) fn not_before(&self) -> UnixTime {
        unix(self.certificate.validity().not_before.timestamp())
    }

    pub(crate) fn not_after(&self) -> UnixTime {
        unix(self.certificate.validity().not_after.timestamp())
    }

    /// Refuses all but an end entity whose key signs, and serves these purposes and no others.
    pub(super) fn check_end_entity(
        &self,
        profile: &'static str,
        purposes: KeyPurposes,
    ) -> Result<(), ProfileError> {
        if self.basic_constraints()? != (false, None) {
            return Err(ProfileError::BasicConstraints { profile });
        }
        if self
            .key_usage()?
            .is_none_or(|usage| usage.flags != DIGITAL_SIGNATURE)
        {
            return Err(ProfileError::KeyUsage {
                expected: "digitalSignature",
            });
        }
        if self
            .key_purposes()?
            .is_none_or(|found| found != purposes.exactly)
        {
            return Err(ProfileError::ExtendedKeyUsage {
                expected: purposes.shown,
            });
        }
        Ok(())
    }

    /// CA flag and path length; no extension counts as "no CA".
    pub(super) fn basic_constraints(&self) -> Result<(bool, Option<u32>), ProfileError> {
        match self.certificate.basic_constraints() {
            Ok(None) => Ok((false, None)),
            Ok(Some(extension)) if extension.critical => {
                Ok((extension.value.ca, extension.value.path_len_constraint))
            }
            _ => Err(ProfileError::Malformed),
        }
    }

    pub(super) fn key_usage(&self) -> Result<Option<KeyUsage>, ProfileError> {
        match self.certificate.key_usage() {
            Ok(extension) => Ok(extension.map(|extension| *extension.value)),
            Err(_) => Err(ProfileError::Malformed),
        }
    }

    /// The key purposes as text, `None` without the extension.
    pub(crate) fn key_purposes(&self) -> Result<Option<Vec<String>>, ProfileError> {
        match self.certificate.extended_key_usage() {
            Ok(extension) => Ok(extension.map(|extension| key_purposes(extension.value))),
            Err(_) => Err(ProfileError::Malformed),
        }
    }

    /// The key purposes as text, where the extension is there and critical.
    pub(crate) fn critical_key_purposes(&self) -> Result<Option<Vec<String>>, ProfileError> {
        match self.certificate.extended_key_usage() {
            Ok(extension) => Ok(extension
                .filter(|extension| extension.critical)
                .map(|extension| key_purposes(extension.value))),
            Err(_) => Err(ProfileError::Malformed),
        }
    }

    /// The subject's one common name, where the subject is nothing else.
    pub(super) fn only_common_name(&self) -> Option<&str> {
        let subject = self.certificate.subject();
        let mut names = subject.iter_common_name();
        match (
            names.next(),
            names.next(),
            subject.iter_attributes().count(),
        ) {
            (Some(name), None, 1) => name.as_str().ok(),
            _ => None,
        }
    }

    /// The subject's one common name, whatever else the subject is.
    pub(crate) fn only_common_name_of_several(&self) -> Option<&str> {
        let mut names = self.certificate.subject().iter_common_name();
        match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok(),
            _ => None,
        }
    }

    pub(super) fn subject(&self) -> &X509Name<'_> {
        self.certificate.subject()
    }

    pub(crate) fn alternative_names(&self) -> Result<&[GeneralName<'a>], ProfileError> {
        match self.certificate.subject_alternative_name() {
            Ok(Some(extension)) => Ok(&extension.value.general_names),
            Ok(None) => Ok(&[]),
            Err(_) => Err(ProfileError::Malformed),
        }
    }

    pub(super) fn name_constraints(&self) -> Result<Option<&NameConstraints<'_>>, ProfileError> {
        match self.certificate.name_constraints() {
            Ok(Some(extension)) if extension.critical => Ok(Some(extension.value)),
            Ok(Some(_)) => Err(ProfileError::NameConstraints),
            Ok(None) => Ok(None),
            Err(_) => Err(ProfileError::Malformed),
        }
    }

    /// The value of the claims extension.
    pub(super) fn claims(&self) -> Result<&'a [u8], ProfileError> {
        self.certificate
            .extensions()
            .iter()
            .find(|extension| extension.oid.iter().is_some_and(|arcs| arcs.eq(CMW_OID)))
            .map(|extension| extension.value)
            .ok_or(ProfileError::ClaimsMissing)
    }

    /// Whether any extension could not be parsed as what it says it is.
    pub(crate) fn check_extensions_parse(&self) -> Result<(), ProfileError> {
        let broken =
            |parsed: &ParsedExtension<'_>| matches!(parsed, ParsedExtension::ParseError { .. });
        if self
            .certificate
            .extensions()
            .iter()
            .any(|extension| broken(extension.parsed_extension()))
        {
            return Err(ProfileError::Malformed);
        }
        Ok(())
    }
}

fn key_purposes(usage: &ExtendedKeyUsage<'_>) -> Vec<String> {
    let known = [
        (usage.any, "anyExtendedKeyUsage"),
        (usage.server_auth, "serverAuth"),
        (usage.client_auth, "clientAuth"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
    ];
    known
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| name.to_owned())
        .chain(usage.other.iter().map(|oid| oid.to_id_string()))
        .collect()
}

fn unix(timestamp: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(timestamp).unwrap_or(0)))
}

impl CertificateSerial {
    /// The serial number of a certificate in DER.
    pub fn of_certificate(der: &[u8]) -> Result<Self, ProfileError> {
        Ok(Fields::read(der)?.serial())
    }
}
