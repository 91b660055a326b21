//! What of an archive is proven.

use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;

use crate::cose_time_stamp::{StampedSign1, signature_imprint};
use crate::evidence_record::{DataHashes, EvidenceRecord, VerifiedRecord};
use crate::hashing::Imprint;
use crate::time_stamp::VerifiedTimeStamp;

use super::error::ArchiveError;
use super::head::Head;
use super::reader::CheckedArchive;

/// An archive whose time is proven.
///
/// It establishes that the signature was there before one time, and the whole archive before another, and which
/// authorities say so. Whose signature it is, and what it is of, is for whoever reads the signed data: as of
/// [the signature's time](Self::signature), with anchors [up to the archive's](TrustAnchors::as_of_proven_time):
/// certificates and statements are not under the signature's time stamp.
/// What the signed data say about their time is the signer's word.
#[derive(Clone, Debug)]
pub struct VerifiedArchive {
    head: Head,
    signed: Vec<u8>,
    data: Option<Imprint>,
    signature: VerifiedTimeStamp,
    record: VerifiedRecord,
}

impl CheckedArchive {
    /// Verifies the proof of time: the last time stamp counts at `at`, each one before it counted when it was
    /// renewed, and the one over the signature when the archive was made. `authorities` are the roots that are
    /// trusted for telling time.
    pub fn verify(
        self,
        authorities: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedArchive, ArchiveError> {
        let mut verified =
            VerifiedArchive::of_head(&self.head, &self.record, &self, authorities, at)?;
        verified.data = self.data().cloned();
        Ok(verified)
    }
}

impl VerifiedArchive {
    /// Verifies the proof of time of an archive of which `hashes` are known.
    pub(crate) fn of_head(
        head: &Head,
        record: &EvidenceRecord,
        hashes: &impl DataHashes,
        authorities: &TrustAnchors,
        at: UnixTime,
    ) -> Result<Self, ArchiveError> {
        let record = record.verify(hashes, authorities, at)?;
        let stamped = StampedSign1::read(&head.signed)?;
        let token = stamped.token.ok_or(ArchiveError::StampMissing)?;
        let signature = signature_imprint(&stamped.sign1, token.imprint().algorithm())?;
        let made = record.first().before();
        let signature = (token.verify(&signature, &authorities.as_of_proven_time(made), made))
            .map_err(ArchiveError::Stamp)?;
        Ok(Self {
            head: head.clone(),
            signed: stamped.sign1,
            data: None,
            signature,
            record,
        })
    }

    /// What the archive says about itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The COSE_Sign1 as its signer left it.
    pub fn signed(&self) -> &[u8] {
        &self.signed
    }

    /// The SHA-256 value of the data, if they are in the archive.
    pub fn data(&self) -> Option<&Imprint> {
        self.data.as_ref()
    }

    /// The signature was there before this one's time.
    pub fn signature(&self) -> &VerifiedTimeStamp {
        &self.signature
    }

    /// All of the archive was there before its first one's time.
    pub fn record(&self) -> &VerifiedRecord {
        &self.record
    }
}
