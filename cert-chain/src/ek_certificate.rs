//! The endorsement key certificate of a physical TPM, checked against its makers' roots.

use std::iter;

use rsa::RsaPublicKey;
use rsa::pkcs1::DecodeRsaPublicKey;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::Oid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::ek_chain::EkChain;
use crate::ek_issuer::{anchors_for, critical_extension, unusable_rsa_key};
use crate::ek_template::EkTemplate;
use crate::endorsement_key::EndorsementKey;
use crate::public_area::KeyParameters;
use crate::signature_algorithms;
use crate::times::rfc3339;
use crate::trust_anchors::{TrustAnchorError, TrustAnchors};

/// Roots and intermediates of the TPM makers that an issuer accepts.
///
/// They decide what counts as a TPM: put a software TPM's authority here, and hosts with
/// software TPMs are enrolled.
#[derive(Clone, Debug)]
pub struct TpmMakerRoots(TrustAnchors);

/// An endorsement key's certificate that was read. Nothing about it is verified;
/// [`CertifiedEndorsementKey::verify`] does that.
#[derive(Clone, Debug)]
pub struct EkCertificate<'a>(X509Certificate<'a>);

/// An endorsement key whose certificate leads to a TPM maker.
///
/// It establishes that the maker vouches for this key. It does not establish that the TPM is
/// in this host, or in any state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedEndorsementKey {
    key: EndorsementKey,
    issuer: String,
    device: Option<TpmMake>,
}

/// What the certificate says about the TPM's make (TCG EK Credential Profile 2.5 §3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmMake {
    /// E.g. `id:49465800` for Infineon.
    pub manufacturer: String,
    /// The maker's part name.
    pub model: String,
    /// Firmware version.
    pub version: String,
}

/// Why an EK certificate was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EkCertificateError {
    /// The certificate is a CA certificate.
    #[error("the EK certificate is a CA certificate")]
    IsCa,
    /// A critical extension that is not understood.
    #[error(
        "the EK certificate, or one above it, has the critical extension {identifier}, which is not \
         understood here and may forbid what it is used for"
    )]
    CriticalExtension {
        /// Its object identifier.
        identifier: String,
    },
    /// The certificate's validity is over.
    #[error("the EK certificate, or one above it, expired at {}", rfc3339(*not_after))]
    Expired {
        /// Last second of its validity.
        not_after: u64,
    },
    /// The RSA key of an issuer has an unusual length.
    #[error(
        "the EK certificate, or one above it, is signed with an RSA key of {bits} bits: 2048 to 8192 are \
         supported"
    )]
    IssuerKey {
        /// Its length.
        bits: usize,
    },
    /// The certificate is for another key.
    #[error("the EK certificate is for another key than the endorsement key given")]
    KeyMismatch,
    /// The key usage does not fit an endorsement key.
    #[error("the EK certificate's key usage does not allow what an endorsement key does")]
    KeyUsage,
    /// Not a certificate.
    #[error("the EK certificate is malformed")]
    Malformed,
    /// No certificate at all.
    #[error("there is no EK certificate: the TPM has none, or it was left out")]
    Missing,
    /// The certificate's validity has not begun.
    #[error("the EK certificate, or one above it, is not valid before {}", rfc3339(*not_before))]
    NotYetValid {
        /// First second of its validity.
        not_before: u64,
    },
    /// A signature by an algorithm that is not supported.
    #[error(
        "the EK certificate, or one above it, is signed with {algorithm}, which is not supported \
         with its issuer's key"
    )]
    SignatureAlgorithm {
        /// Its name, or its object identifier.
        algorithm: String,
    },
    /// A signature that is wrong.
    #[error(
        "the EK certificate, or one above it, was not signed by the key of the maker that it names"
    )]
    Signature,
    /// The key's attributes or policy are not those with which TPMs make endorsement keys.
    #[error(
        "attributes, policy or parameters of the endorsement key are those of no template of the \
         TCG's EK Credential Profile: no TPM has a key of that name for this certificate"
    )]
    Template,
    /// Longer than NV memory of a TPM holds.
    #[error("an EK certificate of {length} bytes is too long (at most {MAX_EK_CERTIFICATE})")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// No configured TPM maker issued it.
    #[error(
        "no configured TPM maker issued the EK certificate (its issuer is {issuer}): add that \
         maker's certificates to the TPM maker roots, if you trust it"
    )]
    UnknownMaker {
        /// The issuer it names.
        issuer: String,
    },
    /// The certificate is for something else than endorsement keys.
    #[error("the certificate is not meant for endorsement keys (2.23.133.8.1)")]
    Usage,
    /// The path is refused for another reason.
    #[error("the EK certificate does not validate")]
    Validation(#[source] webpki::Error),
}

/// The largest known EK certificates have under 2 KiB.
pub const MAX_EK_CERTIFICATE: usize = 8192;

impl TpmMakerRoots {
    /// Reads the makers' root and intermediate certificates in PEM. EK certificates are often
    /// issued by an intermediate that TPMs do not carry: list it here as well.
    ///
    /// Every certificate of the file is taken, or the file is refused ([`TrustAnchors::from_pem`]).
    pub fn from_pem(file: &(impl AsRef<[u8]> + ?Sized)) -> Result<Self, TrustAnchorError> {
        TrustAnchors::from_pem(file).map(Self)
    }
}

impl<'a> EkCertificate<'a> {
    /// Reads a certificate, which may be followed by the padding that some TPMs leave in NV
    /// memory.
    pub fn read(certificate: &'a [u8]) -> Result<Self, EkCertificateError> {
        if certificate.is_empty() {
            return Err(EkCertificateError::Missing);
        }
        if certificate.len() > MAX_EK_CERTIFICATE {
            return Err(EkCertificateError::TooLong {
                length: certificate.len(),
            });
        }
        let (padding, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| EkCertificateError::Malformed)?;
        if padding.iter().any(|byte| !matches!(byte, 0x00 | 0xff)) {
            return Err(EkCertificateError::Malformed);
        }
        Ok(Self(parsed))
    }

    /// Whether its key usage is an endorsement key's, and its key this one.
    pub fn is_for(&self, key: &EndorsementKey) -> Result<(), EkCertificateError> {
        check_key_usage(&self.0)?;
        if same_key(self.0.public_key(), key) {
            Ok(())
        } else {
            Err(EkCertificateError::KeyMismatch)
        }
    }

    /// The TPM's make, where the certificate states it.
    pub fn device(&self) -> Option<TpmMake> {
        read_make(&self.0)
    }
}

impl CertifiedEndorsementKey {
    /// Checks the certificate as of `at`, and that it is for `key`.
    ///
    /// The validity of the maker's root is not looked at: makers let roots expire whose TPMs are
    /// in use, and certify endorsement keys beyond their own end.
    ///
    /// `certificate` may be followed by the padding that some TPMs leave in NV memory. `chain` is
    /// what the TPM has beside it; nothing in it is trusted unless `roots` lead there.
    ///
    /// The name of the key is established as well: its certificate is for the public key, and the
    /// rest must be as in a template of the TCG.
    pub fn verify(
        certificate: &[u8],
        chain: &EkChain,
        key: &EndorsementKey,
        roots: &TpmMakerRoots,
        at: UnixTime,
    ) -> Result<Self, EkCertificateError> {
        let read = EkCertificate::read(certificate)?;
        let parsed = &read.0;
        let der = CertificateDer::from(parsed.as_raw());
        let issuer = parsed.issuer().to_string();

        let path = chain.certificates().iter();
        let above = path.filter_map(|der| X509Certificate::from_der(der).ok());
        let path: Vec<_> = iter::once(parsed.clone())
            .chain(above.map(|(_, certificate)| certificate))
            .collect();
        let anchors = anchors_for(roots.0.as_slice(), &path);

        let refused = |error| EkCertificateError::from_validation(error, &issuer, &anchors, &path);
        let leaf = EndEntityCert::try_from(&der).map_err(refused)?;
        leaf.verify_for_usage(
            signature_algorithms::ALL,
            &anchors,
            chain.certificates(),
            at,
            // "If present", because it is asked of those above as well, which have none.
            KeyUsage::required_if_present(EK_PURPOSE_DER),
            None,
            None,
        )
        .map_err(refused)?;
        check_purpose(parsed)?;

        read.is_for(key)?;
        EkTemplate::of(key.public_area()).ok_or(EkCertificateError::Template)?;
        Ok(Self {
            key: key.clone(),
            issuer,
            device: read.device(),
        })
    }

    /// The endorsement key.
    pub fn key(&self) -> &EndorsementKey {
        &self.key
    }

    /// The certificate's issuer, for people to read.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The TPM's make, where the certificate states it.
    pub fn device(&self) -> Option<&TpmMake> {
        self.device.as_ref()
    }
}

impl EkCertificateError {
    fn from_validation(
        error: webpki::Error,
        issuer: &str,
        anchors: &[TrustAnchor<'static>],
        path: &[X509Certificate<'_>],
    ) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { not_after, .. } => Self::Expired {
                not_after: not_after.as_secs(),
            },
            E::CertNotValidYet { not_before, .. } => Self::NotYetValid {
                not_before: not_before.as_secs(),
            },
            E::CaUsedAsEndEntity => Self::IsCa,
            E::RequiredEkuNotFoundContext(_) => Self::Usage,
            E::UnknownIssuer => Self::UnknownMaker {
                issuer: issuer.to_owned(),
            },
            // The library says so of keys that it does not use, too.
            E::InvalidSignatureForPublicKey => match unusable_rsa_key(anchors, path) {
                Some(bits) => Self::IssuerKey { bits },
                None => Self::Signature,
            },
            E::UnsupportedCriticalExtension => match critical_extension(path) {
                Some(identifier) => Self::CriticalExtension { identifier },
                None => Self::Validation(error),
            },
            E::UnsupportedSignatureAlgorithmContext(context) => {
                Self::of_algorithm(&context.signature_algorithm_id)
            }
            E::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => {
                Self::of_algorithm(&context.signature_algorithm_id)
            }
            other => Self::Validation(other),
        }
    }

    fn of_algorithm(identifier: &[u8]) -> Self {
        Self::SignatureAlgorithm {
            algorithm: signature_algorithms::name(identifier),
        }
    }
}

/// `tcg-kp-EKCertificate`, 2.23.133.8.1, contents in DER.
const EK_PURPOSE_DER: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// `tcg-at-tpmManufacturer`, `tcg-at-tpmModel`, `tcg-at-tpmVersion`
const MANUFACTURER: &str = "2.23.133.2.1";
const MODEL: &str = "2.23.133.2.2";
const VERSION: &str = "2.23.133.2.3";

/// The certificate itself must be for endorsement keys, in so many words.
fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), EkCertificateError> {
    let purposes = certificate
        .extended_key_usage()
        .map_err(|_| EkCertificateError::Malformed)?
        .ok_or(EkCertificateError::Usage)?;
    let is_for_eks = |oid: &Oid<'_>| oid.as_bytes() == EK_PURPOSE_DER;
    if purposes.value.other.iter().any(is_for_eks) {
        Ok(())
    } else {
        Err(EkCertificateError::Usage)
    }
}

/// RSA endorsement keys encipher, elliptic-curve ones agree (EK Credential Profile 2.5 §3.2).
fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), EkCertificateError> {
    let usage = certificate
        .key_usage()
        .map_err(|_| EkCertificateError::Malformed)?;
    match usage {
        Some(extension)
            if !extension.value.key_encipherment() && !extension.value.key_agreement() =>
        {
            Err(EkCertificateError::KeyUsage)
        }
        _ => Ok(()),
    }
}

/// Compares the key itself, not its wrapping: some makers state RSAES-OAEP as algorithm.
fn same_key(certified: &SubjectPublicKeyInfo<'_>, key: &EndorsementKey) -> bool {
    let certified_key = certified.subject_public_key.data.as_ref();
    let ours = key.public_area().public_key_bytes();
    match key.public_area().parameters() {
        KeyParameters::Rsa { .. } => {
            let ours = RsaPublicKey::from_pkcs1_der(ours);
            let certified = RsaPublicKey::from_pkcs1_der(certified_key);
            matches!((certified, ours), (Ok(certified), Ok(ours)) if certified == ours)
        }
        // The curve is a parameter of the algorithm: compare it along with the point.
        KeyParameters::P256 { .. } => {
            certified.raw == key.subject_public_key_info() && certified_key == ours
        }
    }
}

fn read_make(certificate: &X509Certificate<'_>) -> Option<TpmMake> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| {
        let GeneralName::DirectoryName(directory) = name else {
            return None;
        };
        let attribute = |oid: &str| {
            directory
                .iter_attributes()
                .find(|attribute| attribute.attr_type().to_id_string() == oid)
                .and_then(|attribute| attribute.as_str().ok())
                .map(str::to_owned)
        };
        Some(TpmMake {
            manufacturer: attribute(MANUFACTURER)?,
            model: attribute(MODEL)?,
            version: attribute(VERSION)?,
        })
    })
}
