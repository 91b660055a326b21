//! Time-stamp tokens, and what of them is proven.

use cert_chain::{TrustAnchors, VerifiedTimeStampAuthority};
use cms::cert::CertificateChoices;
use cms::content_info::ContentInfo;
use cms::revocation::{RevocationInfoChoice, RevocationInfoChoices};
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use der::asn1::{Any, ObjectIdentifier, OctetString, SetOfVec};
use der::{Decode, Encode};
use rustls_pki_types::{AlgorithmIdentifier, UnixTime, alg_id};
use std::time::Duration;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use super::asn1::{Accuracy, SigningCertificateV2, TstInfo};
use super::clock_time;
use super::error::TimeStampError;
use super::sets;
use crate::hashing::{ArchiveHash, Imprint};

/// A time-stamp token (`TimeStampToken`, RFC 3161 §2.4.2) as it was read. Nothing about it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    der: Vec<u8>,
    signed: SignedData,
    signer: SignerInfo,
    content: OctetString,
    imprint: Imprint,
    nonce: Option<Vec<u8>>,
    time: UnixTime,
    latest: UnixTime,
}

/// The proof that a hash value, and so what it is of, was there before a time.
#[derive(Clone, Debug)]
pub struct VerifiedTimeStamp {
    imprint: Imprint,
    before: UnixTime,
    authority: VerifiedTimeStampAuthority,
}

/// Tokens have 1 to 8 KiB; those with revocation lists of their authority have more.
pub const MAX_TOKEN: usize = 1024 * 1024;

/// Clocks of authorities and verifiers differ by so many seconds at most.
const CLOCK_SKEW: u64 = 60;

const ID_SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const ID_CT_TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_CERTIFICATE_V2: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.47");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

impl Token {
    /// Reads a token.
    pub fn from_der(der: &[u8]) -> Result<Self, TimeStampError> {
        if der.len() > MAX_TOKEN {
            return Err(TimeStampError::TooLong {
                length: der.len(),
                limit: MAX_TOKEN,
            });
        }
        sets::check(der)?;
        let info = ContentInfo::from_der(der)?;
        if info.content_type != ID_SIGNED_DATA {
            return Err(TimeStampError::Malformed("it is no SignedData (RFC 5652)"));
        }
        let signed: SignedData = info.content.decode_as()?;
        let [signer] = signed.signer_infos.0.as_slice() else {
            return Err(TimeStampError::Malformed("it has not exactly one signer"));
        };
        let signer = signer.clone();
        if (signed.crls.as_ref()).is_some_and(|lists| lists.0.len() > MAX_LISTS) {
            return Err(TimeStampError::Malformed(
                "it has too many revocation lists",
            ));
        }
        let encapsulated = &signed.encap_content_info;
        let content: OctetString = match &encapsulated.econtent {
            Some(content) if encapsulated.econtent_type == ID_CT_TST_INFO => content.decode_as()?,
            _ => return Err(TimeStampError::Malformed("its content is no TSTInfo")),
        };
        let info = TstInfo::from_der(content.as_bytes())?;
        if info.version != 1 {
            return Err(TimeStampError::Malformed("its TSTInfo is not of version 1"));
        }
        let critical = (info.extensions.iter().flatten()).find(|extension| extension.critical);
        if let Some(extension) = critical {
            return Err(TimeStampError::Extension(extension.extn_id.to_string()));
        }
        let stamped = &info.message_imprint;
        let algorithm = ArchiveHash::from_oid(stamped.hash_algorithm.oid)?;
        let imprint = Imprint::new(algorithm, stamped.hashed_message.as_bytes()).ok_or(
            TimeStampError::Malformed("its hash value has not the length of its algorithm"),
        )?;
        let time = clock_time::read(&info.gen_time).ok_or(TimeStampError::Malformed(
            "its time is no GeneralizedTime in UTC",
        ))?;
        Ok(Self {
            der: der.to_vec(),
            imprint,
            nonce: info.nonce.map(|nonce| nonce.as_bytes().to_vec()),
            latest: latest(time, info.accuracy.as_ref()),
            time,
            content,
            signer,
            signed,
        })
    }

    /// `TimeStampToken` in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The hash value that it was made for.
    pub fn imprint(&self) -> &Imprint {
        &self.imprint
    }

    /// The time that it states. Until it is verified, anybody may have written it.
    pub fn unverified_time(&self) -> UnixTime {
        self.time
    }

    pub(super) fn nonce(&self) -> Option<&[u8]> {
        self.nonce.as_deref()
    }

    /// The same with revocation lists in DER beside those that it carries (RFC 5652 §10.2.1): its signature does
    /// not cover them, and each has its own. What renews the token covers them.
    pub fn with_crls<C: AsRef<[u8]>>(&self, lists: &[C]) -> Result<Self, TimeStampError> {
        let mut signed = self.signed.clone();
        let mut carried = match signed.crls.take() {
            Some(carried) => carried.0.into_vec(),
            None => Vec::new(),
        };
        for list in lists {
            let list = RevocationInfoChoice::Crl(CertificateList::from_der(list.as_ref())?);
            if !carried.contains(&list) {
                carried.push(list);
            }
        }
        if !carried.is_empty() {
            signed.crls = Some(RevocationInfoChoices(SetOfVec::try_from(carried)?));
        }
        let info = ContentInfo {
            content_type: ID_SIGNED_DATA,
            content: Any::encode_from(&signed)?,
        };
        Self::from_der(&info.to_der()?)
    }

    /// The revocation lists that it carries, in DER.
    pub fn crls(&self) -> Result<Vec<Vec<u8>>, TimeStampError> {
        let carried = self.signed.crls.iter().flat_map(|lists| lists.0.iter());
        let lists = carried.filter_map(|carried| match carried {
            RevocationInfoChoice::Crl(list) => Some(list.to_der()),
            RevocationInfoChoice::Other(_) => None,
        });
        Ok(lists.collect::<Result<_, _>>()?)
    }

    /// Verifies that an authority below `anchors` made this token for `expected`, as of `at`.
    ///
    /// Where a later time stamp proves that the token existed at a time, `at` is that time and the anchors are
    /// those [as of a proven time](TrustAnchors::as_of_proven_time).
    pub fn verify(
        &self,
        expected: &Imprint,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedTimeStamp, TimeStampError> {
        if self.imprint != *expected {
            return Err(TimeStampError::Imprint);
        }
        if self.time.as_secs() > at.as_secs().saturating_add(CLOCK_SKEW) {
            return Err(TimeStampError::Future {
                time: self.time.as_secs(),
                at: at.as_secs(),
            });
        }
        let certificates = self.certificates()?;
        let certificate = self.signers_certificate(&certificates)?;
        let others: Vec<Vec<u8>> = (certificates.iter())
            .map(|other| other.to_der())
            .collect::<Result<_, _>>()?;
        let carried = self.crls()?;
        let anchors = anchors.with_carried(carried.iter().map(Vec::as_slice));
        let authority = VerifiedTimeStampAuthority::verify(&certificate, &others, &anchors, at)
            .map_err(TimeStampError::Authority)?;
        let message = self.signed_attributes(&certificate)?;
        let algorithm = self.signature_algorithm()?;
        (authority.verify_signature(&algorithm, &message, self.signer.signature.as_bytes()))
            .map_err(TimeStampError::Signature)?;
        Ok(VerifiedTimeStamp {
            imprint: self.imprint.clone(),
            before: self.latest,
            authority,
        })
    }

    fn certificates(&self) -> Result<Vec<&Certificate>, TimeStampError> {
        let carried = (self.signed.certificates.iter()).flat_map(|carried| carried.0.iter());
        let certificates: Vec<_> = carried
            .filter_map(|carried| match carried {
                CertificateChoices::Certificate(certificate) => Some(certificate),
                CertificateChoices::Other(_) => None,
            })
            .take(MAX_CERTIFICATES + 1)
            .collect();
        match certificates.len() <= MAX_CERTIFICATES {
            true => Ok(certificates),
            false => Err(TimeStampError::Malformed("it has too many certificates")),
        }
    }

    /// The certificate that the signer's identifier names.
    fn signers_certificate(&self, carried: &[&Certificate]) -> Result<Vec<u8>, TimeStampError> {
        let named = |certificate: &&&Certificate| {
            let contents = &certificate.tbs_certificate;
            match &self.signer.sid {
                SignerIdentifier::IssuerAndSerialNumber(named) => {
                    contents.issuer == named.issuer && contents.serial_number == named.serial_number
                }
                SignerIdentifier::SubjectKeyIdentifier(named) => {
                    matches!(contents.get::<SubjectKeyIdentifier>(), Ok(Some((_, own))) if own == *named)
                }
            }
        };
        let certificate = carried
            .iter()
            .find(named)
            .ok_or(TimeStampError::SignerMissing)?;
        Ok(certificate.to_der()?)
    }

    /// What is signed: the attributes in DER as a SET (RFC 5652 §5.4), which name the content by its hash value
    /// and the signer's certificate by its own (RFC 5816 §2.2.1).
    fn signed_attributes(&self, certificate: &[u8]) -> Result<Vec<u8>, TimeStampError> {
        let attributes = (self.signer.signed_attrs.as_ref())
            .ok_or(TimeStampError::Malformed("it has no signed attributes"))?;
        let only = |oid: ObjectIdentifier| {
            let mut found = attributes.iter().filter(|attribute| attribute.oid == oid);
            match (
                found.next().map(|found| found.values.as_slice()),
                found.next(),
            ) {
                (Some([value]), None) => Some(value),
                _ => None,
            }
        };
        let typed = only(CONTENT_TYPE).and_then(|value| value.decode_as::<ObjectIdentifier>().ok());
        if typed != Some(ID_CT_TST_INFO) {
            return Err(TimeStampError::Malformed(
                "its signed content type is not TSTInfo",
            ));
        }
        let digest = only(MESSAGE_DIGEST).and_then(|value| value.decode_as::<OctetString>().ok());
        let hash = ArchiveHash::from_oid(self.signer.digest_alg.oid)?;
        let own = hash.of(self.content.as_bytes());
        if digest.is_none_or(|digest| digest.as_bytes() != own.value()) {
            return Err(TimeStampError::Malformed(
                "its signed hash value is not that of its content",
            ));
        }
        let named: SigningCertificateV2 = only(SIGNING_CERTIFICATE_V2)
            .ok_or(TimeStampError::Malformed(
                "it does not name its signer's certificate (signingCertificateV2, RFC 5816)",
            ))?
            .decode_as()?;
        let named = (named.certs.first()).ok_or(TimeStampError::Malformed(
            "the attribute that names its signer's certificate is empty",
        ))?;
        let hash = match &named.hash_algorithm {
            Some(algorithm) => ArchiveHash::from_oid(algorithm.oid)?,
            None => ArchiveHash::Sha256,
        };
        if hash.of(certificate).value() != named.cert_hash.as_bytes() {
            return Err(TimeStampError::Malformed(
                "its signer's certificate is not the one that its signature names",
            ));
        }
        Ok(attributes.to_der()?)
    }

    /// Contents of the identifier of signature and hash algorithm. CMS may name RSA alone (RFC 3370 §3.2): the
    /// digest algorithm belongs to it.
    fn signature_algorithm(&self) -> Result<Vec<u8>, TimeStampError> {
        let algorithm = &self.signer.signature_algorithm;
        if algorithm.oid == RSA_ENCRYPTION {
            let with_hash: AlgorithmIdentifier =
                match ArchiveHash::from_oid(self.signer.digest_alg.oid)? {
                    ArchiveHash::Sha256 => alg_id::RSA_PKCS1_SHA256,
                    ArchiveHash::Sha384 => alg_id::RSA_PKCS1_SHA384,
                    ArchiveHash::Sha512 => alg_id::RSA_PKCS1_SHA512,
                };
            return Ok(with_hash.as_ref().to_vec());
        }
        Ok(Any::encode_from(algorithm)?.value().to_vec())
    }
}

impl VerifiedTimeStamp {
    /// What was stamped.
    pub fn imprint(&self) -> &Imprint {
        &self.imprint
    }

    /// It was there before this time: the authority's, with what it says about the accuracy of its clock.
    pub fn before(&self) -> UnixTime {
        self.before
    }

    /// Who says so.
    pub fn authority(&self) -> &VerifiedTimeStampAuthority {
        &self.authority
    }
}

/// An authority, those above it, and some that are not needed.
const MAX_CERTIFICATES: usize = 16;
/// One of each of them.
const MAX_LISTS: usize = 16;

fn latest(time: UnixTime, accuracy: Option<&Accuracy>) -> UnixTime {
    let parts = accuracy.map_or(0, |accuracy| {
        let fraction = accuracy.millis.is_some() || accuracy.micros.is_some();
        u64::from(accuracy.seconds.unwrap_or(0)) + u64::from(fraction)
    });
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs().saturating_add(parts)))
}
