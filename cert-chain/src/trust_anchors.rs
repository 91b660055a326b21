//! The roots a verifier trusts, and for how long.

use std::time::Duration;

use rustls_pki_types::{TrustAnchor, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::identifiers::Digest32;
use crate::pem::{self, FileError, FoundCertificate, Place};

/// The roots a verifier trusts. There is always at least one.
#[derive(Clone, Debug)]
pub struct TrustAnchors {
    anchors: Vec<TrustAnchor<'static>>,
    /// Of the anchor in the same place.
    validities: Vec<RootValidity>,
    digest: Digest32,
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
            anchors,
            validities,
            digest: Digest32::of(&digests),
        })
    }

    /// SHA-256 value over those of the certificates, in rising order: the same for the same set.
    pub fn digest(&self) -> &Digest32 {
        &self.digest
    }

    /// The roots as libraries for TLS take them: names and keys. For how long each is valid is lost, so
    /// whoever takes them has to have the certificates validated here as well.
    pub fn as_slice(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The roots that are valid at a time.
    pub fn valid_at(&self, at: UnixTime) -> Vec<TrustAnchor<'static>> {
        let both = self.anchors.iter().zip(&self.validities);
        both.filter(|(_, validity)| validity.contains(at))
            .map(|(anchor, _)| anchor.clone())
            .collect()
    }

    /// For how long an anchor is valid; of several certificates for one key, until the last ends.
    pub(crate) fn validity_of(&self, anchor: &TrustAnchor<'_>) -> Option<RootValidity> {
        let both = self.anchors.iter().zip(&self.validities);
        both.filter(|(of, _)| *of == anchor)
            .map(|(_, validity)| *validity)
            .max_by_key(|validity| validity.not_after.as_secs())
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
