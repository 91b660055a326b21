//! Validation of a time-stamp authority's certificate (RFC 3161 §2.3), with the outcome as a type.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage, VerifiedPath};

use crate::path::{ChainError, ChainMember, refusal, root_of};
use crate::profile::Fields;
use crate::revocation::{CheckedRevocation, RevocationStatus};
use crate::serial::CertificateSerial;
use crate::signature_algorithms;
use crate::trust_anchors::TrustAnchors;

/// A time-stamp authority below a root that a verifier trusts for telling time.
///
/// It establishes that this key was certified for time stamps and nothing else. That the authority's clock
/// was right is what the verifier trusts it for.
#[derive(Clone, Debug)]
pub struct VerifiedTimeStampAuthority {
    name: String,
    certificate: Vec<u8>,
    not_after: UnixTime,
    revocation: RevocationStatus,
}

/// `id-kp-timeStamping`, 1.3.6.1.5.5.7.3.8.
const TIME_STAMPING_DER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];
const TIME_STAMPING: &str = "timeStamping";

/// Of the authority, the purpose is demanded; certificates above it may leave theirs open.
struct IfPresent;

impl ExtendedKeyUsageValidator for IfPresent {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        KeyUsage::required_if_present(TIME_STAMPING_DER).validate(purposes)
    }
}

impl VerifiedTimeStampAuthority {
    /// Validates an authority's certificate as of `at`. `others` may serve to find a path. What `anchors`
    /// demand about revocation holds for the authority and for each certificate between it and the root.
    pub fn verify<C: AsRef<[u8]>>(
        certificate: &[u8],
        others: &[C],
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<Self, ChainError> {
        let member = ChainMember::TimeStampAuthority;
        let profile = |source| ChainError::Profile { member, source };
        let own = CertificateDer::from(certificate);
        let leaf = EndEntityCert::try_from(&own)
            .map_err(|source| ChainError::Malformed { member, source })?;
        check_purpose(&Fields::read(certificate).map_err(profile)?)?;
        let others: Vec<_> = (others.iter())
            .map(|other| CertificateDer::from(other.as_ref()))
            .collect();
        let valid = anchors.valid_at(at);
        let path = match validate(&leaf, &others, &valid, at) {
            Ok(path) => path,
            Err(refused) => {
                let of_all = validate(&leaf, &others, anchors.as_slice(), at);
                return Err(refusal(anchors, refused, of_all, at));
            }
        };
        let root = root_of(anchors, &path)?;
        let above: Vec<CertificateDer<'_>> = (path.intermediate_certificates())
            .map(|certificate| certificate.der())
            .collect();
        let mut not_after = root.validity.not_after;
        let mut revocation = None;
        let mut below = own.clone();
        let issuers = above.iter().map(Some).chain([None]);
        for issuer in issuers {
            let fields = Fields::read(&below).map_err(profile)?;
            let anchor = match issuer {
                Some(issuer) => webpki::anchor_from_trusted_cert(issuer)
                    .map_err(|source| ChainError::Malformed { member, source })?,
                None => root.anchor.clone(),
            };
            let checked = check_revocation(&fields, &anchor, anchors, at)?;
            not_after = checked.limit(not_after.min(fields.not_after()));
            revocation = Some(match revocation {
                None => checked.status().clone(),
                Some(below) => checked.status().clone().and(below),
            });
            if let Some(issuer) = issuer {
                below = issuer.clone();
            }
        }
        let fields = Fields::read(certificate).map_err(profile)?;
        Ok(Self {
            name: fields.subject_text(),
            certificate: certificate.to_vec(),
            not_after,
            revocation: revocation.unwrap_or(RevocationStatus::NotAsked),
        })
    }

    /// The authority's distinguished name, for people to read.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Until when everything up to the root is valid, and known to be. Tokens have to be renewed before.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// What is known about the revocation of the authority and of those between it and the root: the oldest of
    /// the lists of all of their issuers.
    pub fn revocation(&self) -> &RevocationStatus {
        &self.revocation
    }

    /// Verifies a signature of the authority's key. `algorithm` are the contents of an `AlgorithmIdentifier`
    /// in DER, which names hash and signature algorithm.
    pub fn verify_signature(
        &self,
        algorithm: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), ChainError> {
        let own = CertificateDer::from(self.certificate.as_slice());
        let own = EndEntityCert::try_from(&own).map_err(ChainError::from_validation)?;
        // Several curves go with one signature algorithm: that of the key is found.
        (signature_algorithms::ALL.iter())
            .filter(|known| known.signature_alg_id().as_ref() == algorithm)
            .any(|known| own.verify_signature(*known, message, signature).is_ok())
            .then_some(())
            .ok_or(ChainError::Signature)
    }
}

fn validate<'p>(
    leaf: &'p EndEntityCert<'p>,
    others: &'p [CertificateDer<'p>],
    anchors: &'p [TrustAnchor<'p>],
    at: UnixTime,
) -> Result<VerifiedPath<'p>, ChainError> {
    let algorithms = signature_algorithms::ALL;
    leaf.verify_for_usage(algorithms, anchors, others, at, IfPresent, None, None)
        .map_err(ChainError::from_validation)
}

/// RFC 3161 §2.3: one purpose, in a critical extension.
fn check_purpose(certificate: &Fields<'_>) -> Result<(), ChainError> {
    let member = ChainMember::TimeStampAuthority;
    let purposes = (certificate.critical_key_purposes())
        .map_err(|source| ChainError::Profile { member, source })?;
    match purposes.as_deref() == Some(&[TIME_STAMPING.to_owned()]) {
        true => Ok(()),
        false => Err(ChainError::NoTimeStampAuthority),
    }
}

fn check_revocation(
    certificate: &Fields<'_>,
    issuer: &TrustAnchor<'_>,
    anchors: &TrustAnchors,
    at: UnixTime,
) -> Result<CheckedRevocation, ChainError> {
    let serial: CertificateSerial = certificate.serial();
    let subject = certificate.subject_text();
    Ok(anchors.revocation_of(&subject, &serial, issuer, at)?)
}
