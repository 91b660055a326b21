//! What an archive is worth: its proof of time first, and then its signed data as of the time that is proven.

use archive::cose_time_stamp::StampedSign1;
use archive::evidence_record::RecordError;
use archive::records::{PlacedRecord, Records, RecordsError, SingleRecord};
use archive::{ArchiveError, CheckedArchive, Form, Head, VerifiedArchive, VerifiedTimeStamp};
use attestation::PolicyAbout;
use cert_chain::{Digest32, TrustAnchors};
use rustls_pki_types::UnixTime;
use signed_data::{Content, DataRefusal, DataResult, Demand, FormatError, SignedData, appraise};

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
    records: Option<Records>,
    record: Option<PlacedRecord>,
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
/// Validity counts as of the time that is proven of the signature, and revocation up to the one that is proven of
/// the whole archive: until then, whoever had a key could make certificates and statements that are dated back.
pub fn judge(
    checked: CheckedArchive,
    elsewhere: Option<&Digest32>,
    by: &Judge<'_>,
    at: UnixTime,
) -> Result<ArchivedData, ArchiveRefusal> {
    if checked.head().form == Form::Records {
        return Err(ArchiveError::from(RecordsError::None).into());
    }
    let lists = lists_of(checked.head());
    let archive = checked.verify(&with(by.authorities, &lists), at)?;
    let own = archive
        .data()
        .map(|data| digest_of(data.value()))
        .transpose()?;
    judge_verified(archive, own.as_ref().or(elsewhere), by)
}

/// Judges an archive of records as [`judge`] does; `found` are [the records in it](archive::records::RecordScanner).
pub fn judge_records(
    checked: CheckedArchive,
    found: &Records,
    by: &Judge<'_>,
    at: UnixTime,
) -> Result<ArchivedData, ArchiveRefusal> {
    let lists = lists_of(checked.head());
    let archive = checked.verify(&with(by.authorities, &lists), at)?;
    let mut archived = judge_verified(archive, None, by)?;
    let signed = signed_records(
        archived.result.data().label().content_type.as_str(),
        archived.result.data().content(),
    )?;
    found.must_be(&signed).map_err(ArchiveError::from)?;
    archived.records = Some(signed);
    Ok(archived)
}

/// Judges a record that was taken out of an archive, as [`judge_records`] judges all.
pub fn judge_record(
    single: &SingleRecord,
    by: &Judge<'_>,
    at: UnixTime,
) -> Result<ArchivedData, ArchiveRefusal> {
    let lists = lists_of(single.head());
    let archive = single.verify(&with(by.authorities, &lists), at)?;
    let mut archived = judge_verified(archive, None, by)?;
    let signed = signed_records(
        archived.result.data().label().content_type.as_str(),
        archived.result.data().content(),
    )?;
    let placed = single.verify_place(&signed).map_err(ArchiveError::from)?;
    archived.records = Some(signed);
    archived.record = Some(placed);
    Ok(archived)
}

/// What was signed about records, given what the label says it is.
pub(super) fn signed_records(
    content_type: &str,
    content: &Content,
) -> Result<Records, ArchiveRefusal> {
    let Content::Attached(statement) = content else {
        let missing = "what was signed about its records does not stand with the signature";
        return Err(ArchiveError::Malformed(missing).into());
    };
    Ok(Records::from_signed(content_type, statement).map_err(ArchiveError::from)?)
}

fn lists_of(head: &Head) -> Vec<Vec<u8>> {
    head.crls().map(<[u8]>::to_vec).collect()
}

/// Lists that the archive carries count by their own signature.
fn with(anchors: &TrustAnchors, lists: &[Vec<u8>]) -> TrustAnchors {
    anchors.with_carried(lists.iter().map(Vec::as_slice))
}

/// Judges what is signed in an archive whose time is proven.
fn judge_verified(
    archive: VerifiedArchive,
    data: Option<&Digest32>,
    by: &Judge<'_>,
) -> Result<ArchivedData, ArchiveRefusal> {
    let issuers = with(by.issuers, &lists_of(archive.head()));
    let by = Judge {
        issuers: &issuers,
        ..*by
    };
    let known = archive.record().first().before();
    let result = judge_signed(archive.signed(), data, &by, archive.signature(), known)?;
    Ok(ArchivedData {
        archive,
        result,
        records: None,
        record: None,
    })
}

/// Judges signed data whose signature has a time stamp. Certificates and statements are not under it: they are
/// proven to have been there at `known`, and whoever got a key before may have made them for a signature of old.
pub(super) fn judge_signed(
    sign1: &[u8],
    data: Option<&Digest32>,
    by: &Judge<'_>,
    stamp: &VerifiedTimeStamp,
    known: UnixTime,
) -> Result<DataResult, ArchiveRefusal> {
    let issuers = by.issuers.as_of_proven_time(known);
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

    /// The records that were signed, of an archive of records or a record of it.
    pub fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// The record that was judged by itself.
    pub fn record(&self) -> Option<&PlacedRecord> {
        self.record.as_ref()
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
            Self::Archive(ArchiveError::Records(
                RecordsError::Other { .. } | RecordsError::NotAmong { .. },
            )) => "records",
            Self::Archive(_) | Self::Format(_) => "format",
            Self::Data(refusal) => refusal.code(),
        }
    }
}
