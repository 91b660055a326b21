//! What a verifier demands of revocation lists, and what they say about a certificate.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{TrustAnchor, UnixTime};
use x509_parser::num_bigint::BigUint;

use crate::crl::{Crl, CrlError, RevocationReason};
use crate::serial::CertificateSerial;

/// Whether a verifier demands a revocation list of the issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevocationDemand {
    /// It does not. What a list says that is at hand is heeded all the same.
    #[default]
    NotAsked,
    /// It does: a certificate without a valid list is refused.
    Listed {
        /// How old the list may be.
        max_age: Duration,
    },
}

/// Revocation lists that a verifier was given, from wherever: a list is signed by its issuer.
#[derive(Clone, Debug, Default)]
pub struct RevocationLists {
    lists: Vec<Arc<Crl>>,
    /// The first that could not be read.
    unreadable: Option<CrlError>,
}

/// What is known about the revocation of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationStatus {
    /// Nothing: no list was demanded, and there was no valid one.
    NotAsked,
    /// It is not in a list of its issuer that was valid.
    NotListed(ListFacts),
}

/// What is known about a certificate's revocation, and for how long that is what a verifier demands.
#[derive(Clone, Debug)]
pub(crate) struct CheckedRevocation {
    status: RevocationStatus,
    /// Where it demands a list.
    until: Option<UnixTime>,
}

/// Which list it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFacts {
    /// Its number.
    pub number: BigUint,
    /// When it was made.
    pub this_update: UnixTime,
    /// When there is a newer one at the latest.
    pub next_update: UnixTime,
}

/// Why a certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// The list's time is over.
    #[error(
        "the newest revocation list of the issuer, number {number}, expired at {next_update} (Unix \
         time; it is {at})"
    )]
    Expired {
        /// Its number.
        number: BigUint,
        /// When there had to be a newer one.
        next_update: u64,
        /// The time of the check.
        at: u64,
    },
    /// Where it counts what was known at an earlier time: all lists were made later.
    #[error(
        "the revocation lists of the issuer were all made later, at {earliest} at the earliest; the policy demands \
         one that was valid at {at} (Unix time): give that one as well"
    )]
    LaterOnly {
        /// When the first of them was made.
        earliest: u64,
        /// The time for which one is demanded.
        at: u64,
    },
    /// Lists that cannot be read.
    #[error("the revocation list cannot be used")]
    Malformed(#[source] CrlError),
    /// No list.
    #[error("there is no revocation list of the issuer, and the policy demands one")]
    Missing,
    /// The list is from the future.
    #[error(
        "the newest revocation list of the issuer, number {number}, is not valid before \
         {this_update} (Unix time; it is {at})"
    )]
    NotYetValid {
        /// Its number.
        number: BigUint,
        /// When it was made.
        this_update: u64,
        /// The time of the check.
        at: u64,
    },
    /// Lists of others.
    #[error("there are revocation lists of other issuers only, and the policy demands one of this")]
    OtherIssuer,
    /// The certificate was revoked.
    #[error(
        "the certificate of {subject} (serial number {serial}) was revoked by its issuer at {since} \
         (Unix time): {reason}"
    )]
    Revoked {
        /// Whom it names.
        subject: String,
        /// Its number.
        serial: CertificateSerial,
        /// Since when.
        since: u64,
        /// Why.
        reason: RevocationReason,
    },
    /// A list that says it is the issuer's, and is not.
    #[error("the signature of the revocation list is not its issuer's")]
    Signature,
    /// The list is older than the policy allows.
    #[error(
        "the newest revocation list of the issuer, number {number}, was made {age} s ago; the policy \
         allows {max_age} s"
    )]
    TooOld {
        /// Its number.
        number: BigUint,
        /// Seconds since it was made.
        age: u64,
        /// Seconds that it may be old.
        max_age: u64,
    },
}

impl RevocationLists {
    /// Adds a list.
    pub fn add(&mut self, list: Arc<Crl>) {
        if !self.has(list.der()) {
            self.lists.push(list);
        }
    }

    /// Whether this list in DER is one of them.
    pub fn has(&self, der: &[u8]) -> bool {
        self.lists.iter().any(|known| known.der() == der)
    }

    pub(crate) fn extend(&mut self, more: &Self) {
        for list in &more.lists {
            self.add(Arc::clone(list));
        }
        if let Some(error) = &more.unreadable {
            self.unreadable.get_or_insert_with(|| error.clone());
        }
    }

    /// Reads a list and adds it. One that cannot be read is passed over: if it was needed, the
    /// refusal tells of it.
    pub fn add_der(&mut self, der: &[u8]) {
        // To read a long list again for each piece of evidence that carries it would be dear.
        if self.has(der) {
            return;
        }
        match Crl::read(der) {
            Ok(list) => self.lists.push(Arc::new(list)),
            Err(error) => drop(self.unreadable.get_or_insert(error)),
        }
    }

    /// The newest list that `issuer` signed.
    pub(crate) fn newest_of(&self, issuer: &TrustAnchor<'_>) -> Option<&Arc<Crl>> {
        let of_issuer = self.lists.iter().filter(|list| list.is_of(issuer));
        of_issuer.max_by_key(|list| list.age_order())
    }

    /// What is known about a certificate of `issuer`, for whom a demand may have been made. The
    /// newest list that the issuer signed counts, and no other.
    pub(crate) fn check(
        &self,
        demand: RevocationDemand,
        certificate: (&str, &CertificateSerial),
        issuer: &TrustAnchor<'_>,
        at: UnixTime,
    ) -> Result<CheckedRevocation, RevocationError> {
        let (subject, serial) = certificate;
        let newest = self.newest_of(issuer);
        // Revocation is for good: a list that says so is believed however old it is.
        if let Some(revoked) = newest.and_then(|list| list.find(serial)) {
            return Err(RevocationError::Revoked {
                subject: subject.to_owned(),
                serial: serial.clone(),
                since: revoked.since.as_secs(),
                reason: revoked.reason,
            });
        }
        let facts = newest.map(|list| ListFacts::of(list));
        match (demand, facts) {
            (RevocationDemand::NotAsked, Some(facts)) if facts.is_valid(at).is_ok() => {
                Ok(CheckedRevocation {
                    status: RevocationStatus::NotListed(facts),
                    until: None,
                })
            }
            (RevocationDemand::NotAsked, _) => Ok(CheckedRevocation {
                status: RevocationStatus::NotAsked,
                until: None,
            }),
            (RevocationDemand::Listed { max_age }, Some(facts)) => {
                facts.is_valid(at)?;
                facts.is_fresh(max_age, at)?;
                Ok(CheckedRevocation {
                    until: Some(facts.fresh_until(max_age)),
                    status: RevocationStatus::NotListed(facts),
                })
            }
            (RevocationDemand::Listed { .. }, None) => Err(self.why_none(issuer)),
        }
    }

    /// What was known about a certificate of `issuer` at `at`, when it was needed. It is proven to have existed
    /// at `known`: any list that the issuer signed tells of a revocation until then, whenever the list was made.
    /// Where a list is demanded, one has to have been valid and fresh at `at`.
    pub(crate) fn check_past(
        &self,
        demand: RevocationDemand,
        certificate: (&str, &CertificateSerial),
        issuer: &TrustAnchor<'_>,
        at: UnixTime,
        known: UnixTime,
    ) -> Result<CheckedRevocation, RevocationError> {
        let (subject, serial) = certificate;
        let of_issuer: Vec<_> = (self.lists.iter())
            .filter(|list| list.is_of(issuer))
            .collect();
        let revoked = (of_issuer.iter())
            .filter_map(|list| list.find(serial))
            .min_by_key(|revoked| revoked.unusable_since().as_secs());
        if let Some(revoked) = revoked.filter(|revoked| revoked.unusable_since() <= known) {
            return Err(RevocationError::Revoked {
                subject: subject.to_owned(),
                serial: serial.clone(),
                since: revoked.unusable_since().as_secs(),
                reason: revoked.reason,
            });
        }
        // The newest of those that were there already.
        let then = (of_issuer.iter())
            .filter(|list| list.this_update() <= at)
            .max_by_key(|list| (list.number(), list.this_update().as_secs()));
        let facts = then.map(|list| ListFacts::of(list));
        let status = match (demand, facts) {
            // Where none is demanded, a list from later tells as much, and more.
            (RevocationDemand::NotAsked, facts) => {
                let later = (of_issuer.iter())
                    .filter(|list| list.this_update() > at)
                    .max_by_key(|list| (list.number(), list.this_update().as_secs()));
                let then = facts.filter(|facts| facts.is_valid(at).is_ok());
                let best = later.map(|list| ListFacts::of(list)).or(then);
                best.map_or(RevocationStatus::NotAsked, RevocationStatus::NotListed)
            }
            (RevocationDemand::Listed { max_age }, Some(facts)) => {
                facts.is_valid(at)?;
                facts.is_fresh(max_age, at)?;
                RevocationStatus::NotListed(facts)
            }
            (RevocationDemand::Listed { .. }, None) => {
                let made = of_issuer.iter().map(|list| list.this_update().as_secs());
                return Err(match made.min() {
                    Some(earliest) => RevocationError::LaterOnly {
                        earliest,
                        at: at.as_secs(),
                    },
                    None => self.why_none(issuer),
                });
            }
        };
        Ok(CheckedRevocation {
            status,
            until: None,
        })
    }

    /// Why there is no list of an issuer.
    fn why_none(&self, issuer: &TrustAnchor<'_>) -> RevocationError {
        if self.lists.iter().any(|list| list.names(issuer)) {
            RevocationError::Signature
        } else if let Some(unreadable) = &self.unreadable {
            RevocationError::Malformed(unreadable.clone())
        } else if self.lists.is_empty() {
            RevocationError::Missing
        } else {
            RevocationError::OtherIssuer
        }
    }
}

impl RevocationStatus {
    /// Whether it is what a verifier demands.
    pub fn meets(&self, demand: RevocationDemand, at: UnixTime) -> bool {
        match (demand, self) {
            (RevocationDemand::NotAsked, _) => true,
            (RevocationDemand::Listed { max_age }, Self::NotListed(facts)) => {
                facts.is_valid(at).is_ok() && facts.is_fresh(max_age, at).is_ok()
            }
            (RevocationDemand::Listed { .. }, Self::NotAsked) => false,
        }
    }

    /// Of two certificates of one path: nothing, if nothing is known of one, and else the older list.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::NotListed(one), Self::NotListed(other)) => {
                Self::NotListed(match one.this_update <= other.this_update {
                    true => one,
                    false => other,
                })
            }
            _ => Self::NotAsked,
        }
    }
}

impl CheckedRevocation {
    pub(crate) fn status(&self) -> &RevocationStatus {
        &self.status
    }

    /// The earlier of a certificate's end and the time from which on another list is needed.
    pub(crate) fn limit(&self, end: UnixTime) -> UnixTime {
        self.until.map_or(end, |until| until.min(end))
    }
}

impl ListFacts {
    fn of(list: &Crl) -> Self {
        Self {
            number: list.number().clone(),
            this_update: list.this_update(),
            next_update: list.next_update(),
        }
    }

    fn is_valid(&self, at: UnixTime) -> Result<(), RevocationError> {
        let (number, at) = (self.number.clone(), at.as_secs());
        let (this_update, next_update) = (self.this_update.as_secs(), self.next_update.as_secs());
        if at < this_update {
            return Err(RevocationError::NotYetValid {
                number,
                this_update,
                at,
            });
        }
        if at > next_update {
            return Err(RevocationError::Expired {
                number,
                next_update,
                at,
            });
        }
        Ok(())
    }

    /// The last second in which the list is valid and no older than this.
    fn fresh_until(&self, max_age: Duration) -> UnixTime {
        let too_old = self.this_update.as_secs().saturating_add(max_age.as_secs());
        let too_old = UnixTime::since_unix_epoch(Duration::from_secs(too_old));
        self.next_update.min(too_old)
    }

    fn is_fresh(&self, max_age: Duration, at: UnixTime) -> Result<(), RevocationError> {
        let age = at.as_secs().saturating_sub(self.this_update.as_secs());
        if age <= max_age.as_secs() {
            return Ok(());
        }
        Err(RevocationError::TooOld {
            number: self.number.clone(),
            age,
            max_age: max_age.as_secs(),
        })
    }
}
