//! The roots a verifier trusts, and for how long.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{TrustAnchor, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::crl::Crl;
use crate::digest::Digest32;
use crate::known_signatures::{KnownSignatures, Remembering};
use crate::pem::{self, FileError, FoundCertificate, Place};
use crate::revocation::{CheckedRevocation, RevocationDemand, RevocationError, RevocationLists};
use crate::serial::CertificateSerial;

/// The roots a verifier trusts, and what it knows and demands about the revocation of what they
/// issued. There is always at least one root. A copy shares the roots.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    roots: Arc<Roots>,
    demand: RevocationDemand,
    judged: RevocationJudged,
    lists: RevocationLists,
}

/// Which revocations count.
#[derive(Clone, Copy, Debug)]
enum RevocationJudged {
    /// All: nothing says that a signature is older than the revocation of its key.
    ForGood,
    /// Those up to when what is validated is proven to have existed.
    UpTo(UnixTime),
}

#[derive(Debug)]
struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    /// Of the anchor in the same place.
    validities: Vec<RootValidity>,
    digest: Digest32,
    /// Signatures of certificates below them.
    known: KnownSignatures,
}

/// A root that a certificate leads to.
pub(crate) struct Root {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) validity: RootValidity,
}

/// From the first to the last second of a root's validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootValidity {
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// Why trust anchors could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustAnchorError {
    /// A certificate that cannot be a trust anchor.
    #[error("the certificate {place} of the roots cannot be a trust anchor")]
    Certificate {
        /// Where it is in the file.
        place: Place,
        /// Why.
        #[source]
        source: webpki::Error,
    },
    /// No certificate at all.
    #[error("there is no certificate among the roots: give at least one in PEM")]
    Empty,
    /// The file holds something else than certificates, too.
    #[error("the roots cannot be read: {0}")]
    File(#[from] FileError),
    /// More roots than anyone configures.
    #[error("there are more than {MAX_ANCHORS} roots")]
    TooMany,
}

/// Enough for every TPM maker's roots and intermediates of all generations.
const MAX_ANCHORS: usize = 4096;

impl TrustAnchors {
    /// Reads a file of one or more root certificates in PEM; DER is accepted, too. None is passed
    /// over: a file with anything in it that is not read is refused.
    pub fn from_pem(file: &(impl AsRef<[u8]> + ?Sized)) -> Result<Self, TrustAnchorError> {
        let (mut anchors, mut validities) = (Vec::new(), Vec::new());
        let mut digests = Vec::new();
        let found = pem::certificates(file.as_ref())?;
        if found.len() > MAX_ANCHORS {
            return Err(TrustAnchorError::TooMany);
        }
        for FoundCertificate {
            place,
            der: certificate,
        } in found
        {
            let unusable = |source| TrustAnchorError::Certificate { place, source };
            let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(unusable)?;
            anchors.push(anchor.to_owned());
            validities.push(
                RootValidity::read(&certificate).ok_or_else(|| unusable(webpki::Error::BadDer))?,
            );
            digests.push(Digest32::of(&certificate));
        }
        if anchors.is_empty() {
            return Err(TrustAnchorError::Empty);
        }
        // A set: neither order nor repetition of roots makes a difference.
        digests.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        digests.dedup();
        let digests: Vec<u8> = digests.iter().flat_map(|d| *d.as_bytes()).collect();
        Ok(Self {
            roots: Arc::new(Roots {
                anchors,
                validities,
                digest: Digest32::of(&digests),
                known: KnownSignatures::default(),
            }),
            demand: RevocationDemand::NotAsked,
            judged: RevocationJudged::ForGood,
            lists: RevocationLists::default(),
        })
    }

    /// The same roots, with a demand about revocation.
    #[must_use]
    pub fn demanding(mut self, demand: RevocationDemand) -> Self {
        self.demand = demand;
        self
    }

    /// The same for certificates, and what their keys vouched for, that are proven by a time stamp to have
    /// existed at `known`: what was revoked later counted then, and what was revoked before did not.
    ///
    /// The time as of which they are validated may be an earlier one, at which something that they are about is
    /// proven to have existed, but they are not: until `known`, whoever had the key could make them.
    #[must_use]
    pub fn as_of_proven_time(&self, known: UnixTime) -> Self {
        let mut anchors = self.clone();
        anchors.judged = RevocationJudged::UpTo(known);
        anchors
    }

    /// The same with these revocation lists beside those that are known.
    #[must_use]
    pub fn with_lists(&self, more: &RevocationLists) -> Self {
        let mut anchors = self.clone();
        anchors.lists.extend(more);
        anchors
    }

    /// The same with revocation lists in DER beside those that are known.
    #[must_use]
    pub fn with_carried<'a>(&self, carried: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut anchors = self.clone();
        for list in carried {
            anchors.lists.add_der(list);
        }
        anchors
    }

    /// Of the lists that are known and these in DER, the newest that each root signed.
    pub fn newest_lists<'a>(
        &self,
        carried: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<(&TrustAnchor<'static>, Arc<Crl>)> {
        let lists = self.with_carried(carried).lists;
        (self.roots.anchors.iter())
            .filter_map(|root| Some((root, Arc::clone(lists.newest_of(root)?))))
            .collect()
    }

    /// What is demanded about revocation.
    pub fn demand(&self) -> RevocationDemand {
        self.demand
    }

    /// What is known about the revocation of a certificate that `issuer` made for `subject`.
    pub(crate) fn revocation_of(
        &self,
        subject: &str,
        serial: &CertificateSerial,
        issuer: &TrustAnchor<'_>,
        at: UnixTime,
    ) -> Result<CheckedRevocation, RevocationError> {
        let certificate = (subject, serial);
        match self.judged {
            RevocationJudged::ForGood => self.lists.check(self.demand, certificate, issuer, at),
            RevocationJudged::UpTo(known) => {
                (self.lists).check_past(self.demand, certificate, issuer, at, known)
            }
        }
    }

    /// SHA-256 value over those of the certificates, in rising order: the same for the same set.
    pub fn digest(&self) -> &Digest32 {
        &self.roots.digest
    }

    /// The roots as libraries for TLS take them: names and keys. For how long each is valid is lost, so
    /// whoever takes them has to have the certificates validated here as well.
    pub fn as_slice(&self) -> &[TrustAnchor<'static>] {
        &self.roots.anchors
    }

    /// With what issuers and hosts sign certificates: issuers may use P-256 or P-384, host IKs are P-256. What
    /// was verified with these anchors, or a copy of them, is not verified again.
    pub fn signature_algorithms(&self) -> [Remembering<'_>; 2] {
        [
            self.roots
                .known
                .remembering(webpki::ring::ECDSA_P256_SHA256),
            self.roots
                .known
                .remembering(webpki::ring::ECDSA_P384_SHA384),
        ]
    }

    /// The roots that are valid at a time.
    pub fn valid_at(&self, at: UnixTime) -> Vec<TrustAnchor<'static>> {
        let both = self.roots.with_validities();
        both.filter(|(_, validity)| validity.contains(at))
            .map(|(anchor, _)| anchor.clone())
            .collect()
    }

    /// For how long an anchor is valid; of several certificates for one key, until the last ends.
    pub(crate) fn validity_of(&self, anchor: &TrustAnchor<'_>) -> Option<RootValidity> {
        let both = self.roots.with_validities();
        both.filter(|(of, _)| *of == anchor)
            .map(|(_, validity)| *validity)
            .max_by_key(|validity| validity.not_after.as_secs())
    }
}

impl Roots {
    fn with_validities(&self) -> impl Iterator<Item = (&TrustAnchor<'static>, &RootValidity)> {
        self.anchors.iter().zip(&self.validities)
    }
}

impl RootValidity {
    fn read(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let unix = |timestamp: i64| {
            UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(timestamp).unwrap_or(0)))
        };
        Some(Self {
            not_before: unix(certificate.validity().not_before.timestamp()),
            not_after: unix(certificate.validity().not_after.timestamp()),
        })
    }

    pub(crate) fn contains(&self, at: UnixTime) -> bool {
        (self.not_before.as_secs()..=self.not_after.as_secs()).contains(&at.as_secs())
    }
}
