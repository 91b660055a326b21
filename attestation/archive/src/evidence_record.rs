//! Evidence records (RFC 4998): time stamps that renew one another.
//!
//! The first time stamp covers the archived data. Each later one covers what was there before it, so that
//! something whose authority, key or hash algorithm does not count any more is known to be older than that.

use cert_chain::{ChainError, TrustAnchors};
use cms::content_info::ContentInfo;
use der::asn1::{Any, OctetString};
use der::{Decode, Encode, Sequence};
use rustls_pki_types::UnixTime;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::hashing::{ArchiveHash, Imprint, UnknownHash};
use crate::time_stamp::{TimeStampError, Token, VerifiedTimeStamp};

/// An evidence record about one group of data objects, as it was read. Nothing about it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceRecord {
    /// Each chain has one hash algorithm. Neither it nor any of its chains is ever empty.
    chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    hash: ArchiveHash,
    /// Hash values of which the first time stamp of the chain covers the hash value, in rising order.
    group: Vec<Vec<u8>>,
    tokens: Vec<Token>,
}

/// The hash values of the data objects with each algorithm that a record needs.
pub trait DataHashes {
    /// One hash value for each data object.
    fn hashes(&self, algorithm: ArchiveHash) -> Option<Vec<Imprint>>;

    /// Whether those are all that the record covers. If not, nothing is found out about the others.
    fn are_all(&self) -> bool {
        true
    }
}

/// The time stamps of a record, all verified, oldest first.
#[derive(Clone, Debug)]
pub struct VerifiedRecord {
    first: VerifiedTimeStamp,
    renewals: Vec<VerifiedTimeStamp>,
}

/// Why a record proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not DER.
    #[error("the evidence record is no valid DER ({0})")]
    Der(#[from] der::Error),
    /// An unknown hash algorithm.
    #[error("the evidence record uses a hash algorithm that is not read")]
    Hash(#[from] UnknownHash),
    /// Not for this crate.
    #[error("the evidence record is malformed: {0}")]
    Malformed(&'static str),
    /// The data were altered.
    #[error("the archived data are not those that time stamp {number} covers")]
    OtherData {
        /// From one.
        number: usize,
    },
    /// The last time stamp does not count any more.
    #[error(
        "the last time stamp, number {number}, does not count any more: the archive had to be renewed before"
    )]
    Overdue {
        /// From one.
        number: usize,
        /// Why.
        #[source]
        source: TimeStampError,
    },
    /// A time stamp that does not count, or that was renewed when it did not count any more.
    #[error("time stamp {number} does not count, or did not when it was renewed")]
    Stamp {
        /// From one.
        number: usize,
        /// Why.
        #[source]
        source: TimeStampError,
    },
    /// More renewals than are verified.
    #[error("the evidence record has more than {MAX_CHAINS} chains or {MAX_STAMPS} time stamps")]
    TooManyStamps,
    /// Longer than it may be.
    #[error(
        "the evidence record has {length} bytes; {MAX_RECORD} is the most, with all revocation lists in it"
    )]
    TooLong {
        /// How many.
        length: usize,
    },
}

/// Some hundred renewals, with revocation lists.
pub const MAX_RECORD: usize = 8 * 1024 * 1024;
/// A record for one archive has few objects.
const MAX_GROUP: usize = 16;
/// Hash algorithms of more than a century. Each chain is verified with all before it.
const MAX_CHAINS: usize = 16;
/// Renewals of as long, several a year.
const MAX_STAMPS: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
struct RecordDer {
    version: u8,
    digest_algorithms: Vec<AlgorithmIdentifierOwned>,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    crypto_infos: Option<Vec<Any>>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    encryption_info: Option<Vec<Any>>,
    chains: Vec<Vec<StampDer>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Sequence)]
struct StampDer {
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    digest_algorithm: Option<AlgorithmIdentifierOwned>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", optional = "true")]
    attributes: Option<Vec<Any>>,
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT", optional = "true")]
    reduced_hashtree: Option<Vec<Vec<OctetString>>>,
    time_stamp: ContentInfo,
}

/// What the first time stamp of a record has to cover.
pub fn first_imprint(data: &[Imprint]) -> Option<Imprint> {
    group_imprint(data.first()?.algorithm(), &sorted(data))
}

impl EvidenceRecord {
    /// A record of a first time stamp, over [`first_imprint`] of `data`.
    pub fn new(data: &[Imprint], token: Token) -> Result<Self, RecordError> {
        let expected = first_imprint(data).ok_or(RecordError::Malformed("there are no data"))?;
        if *token.imprint() != expected {
            return Err(RecordError::OtherData { number: 1 });
        }
        Ok(Self {
            chains: vec![Chain {
                hash: expected.algorithm(),
                group: sorted(data),
                tokens: vec![token],
            }],
        })
    }

    /// What a time stamp has to cover that renews the last one, with the same hash algorithm (RFC 4998 §5.2,
    /// time-stamp renewal).
    pub fn renewal_imprint(&self) -> Result<Imprint, RecordError> {
        let (chain, token) = self.last()?;
        Ok(chain.hash.of(token.der()))
    }

    /// What a time stamp has to cover that renews everything with another hash algorithm, of the data as well
    /// (RFC 4998 §5.2, hash-tree renewal).
    pub fn rehash_imprint(&self, data: &[Imprint]) -> Result<Imprint, RecordError> {
        let group = self.renewed_group(data, &self.chains)?;
        let hash = data.first().map(Imprint::algorithm);
        hash.and_then(|hash| group_imprint(hash, &group))
            .ok_or(RecordError::Malformed("there are no data"))
    }

    /// Revocation lists about the last time stamp's authority, to be put in before it is renewed.
    pub fn with_crls<C: AsRef<[u8]>>(mut self, lists: &[C]) -> Result<Self, RecordError> {
        let number = self.stamps();
        let chain = self
            .chains
            .last_mut()
            .and_then(|chain| chain.tokens.last_mut());
        if let Some(token) = chain {
            *token =
                (token.with_crls(lists)).map_err(|source| RecordError::Stamp { number, source })?;
        }
        // Too long a list is refused before an authority is asked.
        self.to_der()?;
        Ok(self)
    }

    /// With a time stamp over [`Self::renewal_imprint`].
    pub fn renewed(mut self, token: Token) -> Result<Self, RecordError> {
        let number = self.stamps() + 1;
        if *token.imprint() != self.renewal_imprint()? {
            return Err(RecordError::OtherData { number });
        }
        if let Some(chain) = self.chains.last_mut() {
            chain.tokens.push(token);
        }
        self.within_limits()
    }

    /// With a time stamp over [`Self::rehash_imprint`] of `data`.
    pub fn rehashed(mut self, data: &[Imprint], token: Token) -> Result<Self, RecordError> {
        let number = self.stamps() + 1;
        if *token.imprint() != self.rehash_imprint(data)? {
            return Err(RecordError::OtherData { number });
        }
        self.chains.push(Chain {
            hash: token.imprint().algorithm(),
            group: self.renewed_group(data, &self.chains)?,
            tokens: vec![token],
        });
        self.within_limits()
    }

    fn within_limits(self) -> Result<Self, RecordError> {
        match self.chains.len() <= MAX_CHAINS && self.stamps() <= MAX_STAMPS {
            true => Ok(self),
            false => Err(RecordError::TooManyStamps),
        }
    }

    /// The hash algorithms with which the data have to be hashed to verify this record.
    pub fn algorithms(&self) -> Vec<ArchiveHash> {
        let mut algorithms: Vec<_> = self.chains.iter().map(|chain| chain.hash).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        algorithms
    }

    /// Number of time stamps.
    pub fn stamps(&self) -> usize {
        self.chains.iter().map(|chain| chain.tokens.len()).sum()
    }

    /// The tokens, oldest first.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.chains.iter().flat_map(|chain| chain.tokens.iter())
    }

    /// Verifies that the data were there before the first time stamp's time: the last one counts at `at`, and
    /// each other did when it was renewed.
    pub fn verify(
        &self,
        data: &impl DataHashes,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedRecord, RecordError> {
        let expected = self.expected(data)?;
        let (mut then, mut judged) = (at, anchors.clone());
        let mut verified = Vec::new();
        let tokens: Vec<_> = self.tokens().zip(&expected).collect();
        for (index, (token, expected)) in tokens.into_iter().enumerate().rev() {
            let number = index + 1;
            let stamp = token.verify(expected, &judged, then);
            let is_last = number == self.stamps();
            let stamp = stamp.map_err(|source| match is_last && has_ended(&source) {
                true => RecordError::Overdue { number, source },
                false => RecordError::Stamp { number, source },
            })?;
            // The one before existed when this one was made: then it has to have counted.
            then = stamp.before();
            judged = anchors.as_of_proven_time(then);
            verified.push(stamp);
        }
        let first = verified
            .pop()
            .ok_or(RecordError::Malformed("it has no time stamp"))?;
        verified.reverse();
        Ok(VerifiedRecord {
            first,
            renewals: verified,
        })
    }

    /// What each time stamp has to cover; the groups of hash values have to be those of the data.
    fn expected(&self, data: &impl DataHashes) -> Result<Vec<Imprint>, RecordError> {
        let (mut expected, mut number) = (Vec::new(), 1);
        for (index, chain) in self.chains.iter().enumerate() {
            let before = self.chains.get(..index).unwrap_or_default();
            let own = (data.hashes(chain.hash)).ok_or(RecordError::Malformed(
                "the data were not hashed with its algorithm",
            ))?;
            let group = match before.is_empty() {
                true => sorted(&own),
                false => self.renewed_group(&own, before)?,
            };
            let covered = match data.are_all() {
                true => group == chain.group,
                false => group.iter().all(|own| chain.group.contains(own)),
            };
            if !covered || own.is_empty() {
                return Err(RecordError::OtherData { number });
            }
            let first = group_imprint(chain.hash, &chain.group);
            expected.push(first.ok_or(RecordError::Malformed("there are no data"))?);
            let renewed = chain.tokens.len().saturating_sub(1);
            let renewals = chain.tokens.iter().take(renewed);
            expected.extend(renewals.map(|token| chain.hash.of(token.der())));
            number += chain.tokens.len();
        }
        Ok(expected)
    }

    /// RFC 4998 §5.2: each data object's hash value, with that of the chains before, hashed again.
    fn renewed_group(
        &self,
        data: &[Imprint],
        before: &[Chain],
    ) -> Result<Vec<Vec<u8>>, RecordError> {
        let chains: Vec<Vec<StampDer>> =
            before.iter().map(Chain::to_der).collect::<Result<_, _>>()?;
        let chains = chains.to_der()?;
        let renewed: Vec<Imprint> = (data.iter())
            .map(|own| {
                let hash = own.algorithm();
                hash.of(&[own.value(), hash.of(&chains).value()].concat())
            })
            .collect();
        Ok(sorted(&renewed))
    }

    fn last(&self) -> Result<(&Chain, &Token), RecordError> {
        (self.chains.last())
            .and_then(|chain| Some((chain, chain.tokens.last()?)))
            .ok_or(RecordError::Malformed("it has no time stamp"))
    }

    /// `EvidenceRecord` in DER. What would be too long to be read is not written either.
    pub fn to_der(&self) -> Result<Vec<u8>, RecordError> {
        let chains = (self.chains.iter().map(Chain::to_der)).collect::<Result<_, _>>()?;
        let record = RecordDer {
            version: 1,
            digest_algorithms: (self.algorithms().into_iter())
                .map(ArchiveHash::identifier)
                .collect(),
            crypto_infos: None,
            encryption_info: None,
            chains,
        };
        let der = record.to_der()?;
        match der.len() <= MAX_RECORD {
            true => Ok(der),
            false => Err(RecordError::TooLong { length: der.len() }),
        }
    }

    /// Reads a record in the one form that ours have.
    pub fn from_der(der: &[u8]) -> Result<Self, RecordError> {
        if der.len() > MAX_RECORD {
            return Err(RecordError::TooLong { length: der.len() });
        }
        let record = RecordDer::from_der(der)?;
        if record.version != 1 {
            return Err(RecordError::Malformed("it is not of version 1"));
        }
        let chains = (record.chains.iter().map(|chain| Chain::read(chain)))
            .collect::<Result<Vec<_>, _>>()?;
        let read = Self { chains }.within_limits()?;
        if read.chains.is_empty() || read.to_der()? != der {
            return Err(RecordError::Malformed(
                "it is not in the form that archives have",
            ));
        }
        Ok(read)
    }
}

impl Chain {
    fn to_der(&self) -> Result<Vec<StampDer>, RecordError> {
        let mut stamps = Vec::new();
        for (index, token) in self.tokens.iter().enumerate() {
            let group: Result<Vec<_>, _> = (self.group.iter())
                .map(|value| OctetString::new(value.as_slice()))
                .collect();
            stamps.push(StampDer {
                digest_algorithm: Some(self.hash.identifier()),
                attributes: None,
                reduced_hashtree: match index {
                    0 => Some(vec![group?]),
                    _ => None,
                },
                time_stamp: ContentInfo::from_der(token.der())?,
            });
        }
        Ok(stamps)
    }

    fn read(stamps: &[StampDer]) -> Result<Self, RecordError> {
        let first = stamps
            .first()
            .ok_or(RecordError::Malformed("a chain of it is empty"))?;
        let hash = (first.digest_algorithm.as_ref()).ok_or(RecordError::Malformed(
            "a chain of it does not name its hash algorithm",
        ))?;
        let hash = ArchiveHash::from_oid(hash.oid)?;
        let group = match first.reduced_hashtree.as_deref() {
            Some([group]) if group.len() <= MAX_GROUP => group,
            _ => {
                return Err(RecordError::Malformed(
                    "a chain of it does not cover one group of data",
                ));
            }
        };
        if group
            .iter()
            .any(|value| value.as_bytes().len() != hash.length())
        {
            return Err(RecordError::Malformed(
                "a hash value in it has another length than its algorithm's",
            ));
        }
        let tokens = (stamps.iter().enumerate())
            .map(|(index, stamp)| {
                let number = index + 1;
                let der = stamp.time_stamp.to_der()?;
                Token::from_der(&der).map_err(|source| RecordError::Stamp { number, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            hash,
            group: group
                .iter()
                .map(|value| value.as_bytes().to_vec())
                .collect(),
            tokens,
        })
    }
}

impl VerifiedRecord {
    /// The data were there before the time of this one.
    pub fn first(&self) -> &VerifiedTimeStamp {
        &self.first
    }

    /// Those that renewed it, oldest first.
    pub fn renewals(&self) -> &[VerifiedTimeStamp] {
        &self.renewals
    }

    /// Until when the record counts if it is not renewed.
    pub fn not_after(&self) -> UnixTime {
        let last = self.renewals.last().unwrap_or(&self.first);
        last.authority().not_after()
    }
}

/// Whether a time stamp counted once.
fn has_ended(why: &TimeStampError) -> bool {
    matches!(
        why,
        TimeStampError::Authority(
            ChainError::Expired { .. } | ChainError::RootExpired { .. } | ChainError::Revocation(_)
        )
    )
}

fn sorted(hashes: &[Imprint]) -> Vec<Vec<u8>> {
    let mut values: Vec<_> = hashes.iter().map(|hash| hash.value().to_vec()).collect();
    values.sort_unstable();
    values
}

/// RFC 4998 §4.2: of several hash values, the hash value of all in rising order; of one, itself.
fn group_imprint(hash: ArchiveHash, group: &[Vec<u8>]) -> Option<Imprint> {
    match group {
        [] => None,
        [only] => Imprint::new(hash, only),
        _ => Some(hash.of(&group.concat())),
    }
}
