//! Certificate revocation lists (RFC 5280 §5): whom an issuer does not vouch for any more.
//!
//! A list is read as a whole, within a limit, before anything of it counts. Those of one profile are
//! read: complete lists of version 2, with number and next update, of all certificates of their
//! issuer. Whatever narrows a list down (issuing distribution points, delta lists, indirect lists)
//! stands in critical extensions, and lists with one that is not understood are refused.

use std::fmt;
use std::time::Duration;

use rustls_pki_types::{AlgorithmIdentifier, TrustAnchor, UnixTime, alg_id};
use serde::{Deserialize, Serialize};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::der_parser::Oid;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::pem::{self, FileError};
use crate::serial::CertificateSerial;
use crate::signature_algorithms;

/// A revocation list as it was read. Its signature is not verified: who asks it names the issuer.
pub struct Crl {
    der: Vec<u8>,
    entries: CertRevocationList<'static>,
    number: BigUint,
    this_update: UnixTime,
    next_update: UnixTime,
    signed: Signed,
}

/// What an issuer signed, and how.
struct Signed {
    contents: Vec<u8>,
    algorithm: AlgorithmIdentifier,
    signature: Vec<u8>,
}

/// What a list says about a certificate that it revokes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Since when.
    pub since: UnixTime,
    /// Since when the key is known or suspected not to be its owner's alone (RFC 5280 §5.3.2), if that is said.
    pub invalid_since: Option<UnixTime>,
    /// Why.
    pub reason: RevocationReason,
}

impl Revoked {
    /// The time from which on the key's signatures do not count.
    pub fn unusable_since(&self) -> UnixTime {
        (self.invalid_since).map_or(self.since, |invalid| invalid.min(self.since))
    }
}

/// Why a certificate was revoked (RFC 5280 §5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    /// It is not said.
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Somebody else may have the key of a CA.
    CaCompromise,
    /// The subject belongs to somebody else now.
    AffiliationChanged,
    /// There is another certificate.
    Superseded,
    /// The subject is out of use.
    CessationOfOperation,
    /// For the time being.
    CertificateHold,
    /// A reason of delta lists.
    RemoveFromCrl,
    /// What the certificate says is not granted any more.
    PrivilegeWithdrawn,
    /// Somebody else may have the key of an attribute authority.
    AaCompromise,
}

/// Why bytes are no revocation list, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// Signed in a way that is not verified.
    #[error(
        "it is signed with {algorithm}; read are ECDSA on P-256, P-384 or P-521, and RSA (PKCS #1) with SHA-256 or more"
    )]
    Algorithm {
        /// How.
        algorithm: String,
    },
    /// An extension that narrows the list down, or is not known.
    #[error(
        "it is not a list of all certificates of its issuer, or has a critical extension that is \
         not understood ({0})"
    )]
    Extension(webpki::Error),
    /// Not DER that follows RFC 5280.
    #[error("it is malformed ({0})")]
    Malformed(webpki::Error),
    /// No number.
    #[error(
        "it has no number (extension 2.5.29.20), so newer and older lists cannot be told apart"
    )]
    NoNumber,
    /// More bytes than a list may have.
    #[error("{length} bytes are too many: {MAX_CRL} is the most")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// Why a file of revocation lists was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrlFileError {
    /// A list that cannot be used.
    #[error("a revocation list in it cannot be used")]
    List(#[from] CrlError),
    /// No list at all.
    #[error("there is no revocation list in it (PEM label `X509 CRL`, or DER)")]
    Empty,
    /// The file holds something else, too.
    #[error("it cannot be read")]
    File(#[from] FileError),
    /// More lists than anyone needs.
    #[error("it has more than {MAX_LISTS} revocation lists")]
    TooMany,
}

/// Some 20,000 certificates. An issuer of hosts takes out what has expired.
pub const MAX_CRL: usize = 1024 * 1024;
/// Lists of one file: one of each issuer that is trusted.
pub const MAX_LISTS: usize = 16;
/// The most that a file of lists can have, in PEM.
pub const MAX_CRL_FILE: usize = 2 * MAX_CRL;

impl Crl {
    /// Reads a list in DER.
    pub fn read(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL {
            return Err(CrlError::TooLong { length: der.len() });
        }
        // It reads strictly, entries and their extensions too, but gives neither number nor date.
        let entries: CertRevocationList<'static> = OwnedCertRevocationList::from_der(der)
            .map_err(refusal)?
            .into();
        if entries.issuing_distribution_point().is_some() {
            let source = webpki::Error::UnsupportedCrlIssuingDistributionPoint;
            return Err(CrlError::Extension(source));
        }
        let malformed = || CrlError::Malformed(webpki::Error::BadDer);
        let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| malformed())?;
        let contents = &list.tbs_cert_list;
        contents.extensions_map().map_err(|_| malformed())?;
        let number = list.crl_number().ok_or(CrlError::NoNumber)?.clone();
        let next_update = list.next_update().ok_or_else(malformed)?;
        Ok(Self {
            der: der.to_vec(),
            number,
            this_update: unix(list.last_update().timestamp()),
            next_update: unix(next_update.timestamp()),
            signed: Signed {
                algorithm: algorithm(&list.signature_algorithm.algorithm)?,
                contents: contents.as_ref().to_vec(),
                signature: list.signature_value.data.to_vec(),
            },
            entries,
        })
    }

    /// Reads a file of one list or more in PEM, or of one in DER.
    pub fn all_from_file(file: &[u8]) -> Result<Vec<Self>, CrlFileError> {
        const SEQUENCE: u8 = 0x30;
        if file.first() == Some(&SEQUENCE) {
            return Ok(vec![Self::read(file)?]);
        }
        let lists = pem::revocation_lists(file)?;
        match lists.len() {
            0 => Err(CrlFileError::Empty),
            1..=MAX_LISTS => Ok(lists
                .iter()
                .map(|der| Self::read(der))
                .collect::<Result<_, _>>()?),
            _ => Err(CrlFileError::TooMany),
        }
    }

    /// The list in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The list in PEM.
    pub fn to_pem(&self) -> String {
        pem::encode_crl(&self.der)
    }

    /// Its number: of two lists of one issuer, the one with the higher number is newer.
    pub fn number(&self) -> &BigUint {
        &self.number
    }

    /// Of two lists of one issuer, that of the newer one is greater: by number, and then by time.
    pub fn age_order(&self) -> (&BigUint, u64) {
        (&self.number, self.this_update.as_secs())
    }

    /// When it was made.
    pub fn this_update(&self) -> UnixTime {
        self.this_update
    }

    /// When there is a newer one at the latest.
    pub fn next_update(&self) -> UnixTime {
        self.next_update
    }

    /// Whether the list names this issuer as its own. Anybody can make one that does.
    pub(crate) fn names(&self, issuer: &TrustAnchor<'_>) -> bool {
        self.entries.issuer() == issuer.subject.as_ref()
    }

    /// Whether this issuer made the list.
    pub(crate) fn is_of(&self, issuer: &TrustAnchor<'_>) -> bool {
        if !self.names(issuer) {
            return false;
        }
        let key = webpki::spki_for_anchor(issuer);
        let Ok((_, key)) = SubjectPublicKeyInfo::from_der(&key) else {
            return false;
        };
        let key = &key.subject_public_key.data;
        let Signed {
            contents,
            algorithm,
            signature,
        } = &self.signed;
        // Several curves go with one signature algorithm: that of the key is found.
        (signature_algorithms::ALL.iter())
            .filter(|known| known.signature_alg_id() == *algorithm)
            .any(|known| known.verify_signature(key, contents, signature).is_ok())
    }

    /// What the list says about the certificate with this number.
    pub fn find(&self, serial: &CertificateSerial) -> Option<Revoked> {
        // Every entry was read, so this finds what there is.
        let found = self.entries.find_serial(serial.as_bytes()).ok()??;
        Some(Revoked {
            since: found.revocation_date,
            invalid_since: found.invalidity_date,
            reason: found
                .reason_code
                .map_or(RevocationReason::Unspecified, RevocationReason::from),
        })
    }
}

/// How issuers of hosts sign; and other issuers, many of time-stamp authorities among them, with RSA from 2,048
/// bits on. A key of another kind verifies nothing.
fn algorithm(oid: &Oid<'_>) -> Result<AlgorithmIdentifier, CrlError> {
    match oid.to_id_string().as_str() {
        "1.2.840.10045.4.3.2" => Ok(alg_id::ECDSA_SHA256),
        "1.2.840.10045.4.3.3" => Ok(alg_id::ECDSA_SHA384),
        "1.2.840.10045.4.3.4" => Ok(alg_id::ECDSA_SHA512),
        "1.2.840.113549.1.1.11" => Ok(alg_id::RSA_PKCS1_SHA256),
        "1.2.840.113549.1.1.12" => Ok(alg_id::RSA_PKCS1_SHA384),
        "1.2.840.113549.1.1.13" => Ok(alg_id::RSA_PKCS1_SHA512),
        other => Err(CrlError::Algorithm {
            algorithm: other.to_owned(),
        }),
    }
}

fn refusal(error: webpki::Error) -> CrlError {
    use webpki::Error as E;
    match error {
        E::UnsupportedCriticalExtension
        | E::UnsupportedCrlIssuingDistributionPoint
        | E::UnsupportedDeltaCrl
        | E::UnsupportedIndirectCrl
        | E::UnsupportedRevocationReasonsPartitioning => CrlError::Extension(error),
        other => CrlError::Malformed(other),
    }
}

fn unix(timestamp: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(timestamp).unwrap_or(0)))
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("number", &self.number)
            .field("this_update", &self.this_update)
            .field("next_update", &self.next_update)
            .finish_non_exhaustive()
    }
}

impl From<webpki::RevocationReason> for RevocationReason {
    fn from(reason: webpki::RevocationReason) -> Self {
        use webpki::RevocationReason as R;
        match reason {
            R::Unspecified => Self::Unspecified,
            R::KeyCompromise => Self::KeyCompromise,
            R::CaCompromise => Self::CaCompromise,
            R::AffiliationChanged => Self::AffiliationChanged,
            R::Superseded => Self::Superseded,
            R::CessationOfOperation => Self::CessationOfOperation,
            R::CertificateHold => Self::CertificateHold,
            R::RemoveFromCrl => Self::RemoveFromCrl,
            R::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
            R::AaCompromise => Self::AaCompromise,
        }
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key compromise",
            Self::CaCompromise => "CA compromise",
            Self::AffiliationChanged => "affiliation changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation of operation",
            Self::CertificateHold => "certificate hold",
            Self::RemoveFromCrl => "removed from the list",
            Self::PrivilegeWithdrawn => "privilege withdrawn",
            Self::AaCompromise => "attribute authority compromise",
        })
    }
}
