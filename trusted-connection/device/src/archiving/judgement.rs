//! What an archive is worth: its proof of time first, and then its signed data as of the time that is proven.

use archive::cose_time_stamp::StampedSign1;
use archive::evidence_record::RecordError;
use archive::{ArchiveError, CheckedArchive, VerifiedArchive, VerifiedTimeStamp};
use attestation::PolicyAbout;
use cert_chain::{Digest32, TrustAnchors};
use rustls_pki_types::UnixTime;
use signed_data::{DataRefusal, DataResult, Demand, FormatError, SignedData, appraise};

/// By what an archive is judged. All of it is the verifier's own.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// What is expected of the source.
    pub policy: &'a PolicyAbout,
    /// Its issuers, with the revocation lists that the verifier has.
    pub issuers: &'a TrustAnchors,
    /// Roots that are trusted for telling time, with such lists.
    pub authorities: &'a TrustAnchors,
    /// What is demanded beyond the policy.
    pub demand: &'a Demand,
}

/// Archived data that are genuine, with what they are worth.
///
/// Their signature was there before [`VerifiedArchive::signature`]'s time, and everything in the archive before
/// its [record](VerifiedArchive::record)'s. The time in the label is the signer's word.
#[derive(Debug)]
pub struct ArchivedData {
    archive: VerifiedArchive,
    result: DataResult,
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveRefusal {
    /// The archive, or its proof of time.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The signed data.
    #[error(transparent)]
    Data(#[from] DataRefusal),
    /// What is in it are no signed data.
    #[error("what is archived cannot be read")]
    Format(#[from] FormatError),
}

/// Judges an archive as of `at`. `elsewhere` is the SHA-256 value of the data if they are not in the archive.
///
/// Revocation counts as of the time that is proven: a key that was revoked later had not been when it signed, and
/// one that was revoked before may have signed anything since.
pub fn judge(
    checked: CheckedArchive,
    elsewhere: Option<&Digest32>,
    by: &Judge<'_>,
    at: UnixTime,
) -> Result<ArchivedData, ArchiveRefusal> {
    let lists: Vec<Vec<u8>> = checked.head().crls().map(<[u8]>::to_vec).collect();
    let lists = || lists.iter().map(Vec::as_slice);
    let archive = checked.verify(&by.authorities.with_carried(lists()), at)?;
    let own = archive
        .data()
        .map(|data| digest_of(data.value()))
        .transpose()?;
    let issuers = by.issuers.with_carried(lists());
    let by = Judge {
        issuers: &issuers,
        ..*by
    };
    let result = judge_signed(
        archive.signed(),
        own.as_ref().or(elsewhere),
        &by,
        archive.signature(),
    )?;
    Ok(ArchivedData { archive, result })
}

/// Judges signed data whose signature has a time stamp.
pub(super) fn judge_signed(
    sign1: &[u8],
    data: Option<&Digest32>,
    by: &Judge<'_>,
    stamp: &VerifiedTimeStamp,
) -> Result<DataResult, ArchiveRefusal> {
    let issuers = by.issuers.as_of_proven_time();
    let verified = SignedData::from_cbor(sign1)?.verify(data, &issuers, stamp.before())?;
    Ok(appraise(verified, by.policy, by.demand)?)
}

/// Signed data with the time stamp that they may have already.
pub(super) fn read_signed(bytes: &[u8]) -> Result<(SignedData, StampedSign1), ArchiveRefusal> {
    let stamped = StampedSign1::read(bytes).map_err(ArchiveError::from)?;
    Ok((SignedData::from_cbor(&stamped.sign1)?, stamped))
}

pub(super) fn digest_of(sha256: &[u8]) -> Result<Digest32, ArchiveError> {
    <[u8; 32]>::try_from(sha256)
        .map(Digest32::new)
        .map_err(|_| ArchiveError::Malformed("the hash value of its data has not 32 bytes"))
}

impl ArchivedData {
    /// The archive, with what is proven of its time.
    pub fn archive(&self) -> &VerifiedArchive {
        &self.archive
    }

    /// What was signed, and what it is worth.
    pub fn result(&self) -> &DataResult {
        &self.result
    }
}

impl ArchiveRefusal {
    /// A short name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Archive(ArchiveError::Damaged) => "damaged",
            Self::Archive(ArchiveError::Record(RecordError::OtherData { .. })) => "altered",
            Self::Archive(ArchiveError::Record(RecordError::Overdue { .. })) => "overdue",
            Self::Archive(ArchiveError::Record(RecordError::Stamp { .. })) => "time-stamp",
            Self::Archive(ArchiveError::Stamp(_) | ArchiveError::StampMissing) => "time-stamp",
            Self::Archive(_) | Self::Format(_) => "format",
            Self::Data(refusal) => refusal.code(),
        }
    }
}
