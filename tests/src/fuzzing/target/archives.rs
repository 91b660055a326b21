//! Archives, and what is taken out of them.

use std::io::{Cursor, Write, sink};
use std::time::Duration;

use anyhow::{Context, Result};
use archive::evidence_record::first_imprint;
use archive::records::{
    CONTENT_TYPE, RecordName, RecordScanner, RecordWriter, Records, SingleRecord,
};
use archive::time_stamp::Nonce;
use archive::{
    ArchiveHash, DataHashes, EvidenceRecord, Form, Imprint, Reader, TimeStampRequest, Token,
};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;
use test_support::time_authority::{AuthorityProfile, Keys, TimeAuthority};

use super::Target;

/// Files of version 1, and the root of the authority that vouches for their time.
const GOLDEN: [&[u8]; 2] = [
    include_bytes!("../../../../attestation/archive/tests/golden/archive_v1.cbor"),
    include_bytes!("../../../../attestation/archive/tests/golden/records_v1.cbor"),
];
const GOLDEN_RECORD: &[u8] =
    include_bytes!("../../../../attestation/archive/tests/golden/single_record_v1.cbor");
const ROOT: &[u8] = include_bytes!("../../../../attestation/archive/tests/golden/time_root.pem");

/// Whole archives, with the records in them.
pub(super) const ARCHIVE: Target = Target {
    name: "archive",
    run: |input| {
        if verify(input) == Some(true) {
            assert!(
                GOLDEN.contains(&input),
                "an archive with a changed byte was verified"
            );
        }
    },
    seeds: || Ok(GOLDEN.map(<[u8]>::to_vec).to_vec()),
};

/// A record that was taken out.
pub(super) const SINGLE_RECORD: Target = Target {
    name: "archive-single-record",
    run: |input| {
        let Ok(record) = SingleRecord::from_cbor(input) else {
            return;
        };
        assert!(
            record.to_cbor().is_ok_and(|again| again == input),
            "there is one encoding only"
        );
        let (Ok(roots), Some(at)) = (roots(), time_of(record.record())) else {
            return;
        };
        if record.verify(&roots, at).is_ok() {
            assert!(
                input == GOLDEN_RECORD,
                "a record with a changed byte was verified"
            );
        }
    },
    seeds: || Ok(vec![GOLDEN_RECORD.to_vec()]),
};

/// Records as they stand in an archive, and what is signed about them.
pub(super) const RECORDS: Target = Target {
    name: "archive-records",
    run: |input| {
        if let Ok(signed) = Records::from_signed(CONTENT_TYPE, input) {
            assert!(signed.to_cbor() == input, "there is one encoding only");
        }
        // In one piece, and in many.
        let whole = scan(input, input.len().max(1));
        let pieces = scan(input, 7);
        assert!(whole == pieces, "pieces make a difference");
        if let Some((records, again)) = whole {
            assert!(again == input, "there is one encoding only");
            assert!(records.count() > 0);
        }
    },
    seeds: || {
        let (mut data, mut archive) = (Vec::new(), golden(1)?);
        archive.check(&[], &mut data)?;
        let (records, _) = scan(&data, data.len()).context("the golden records")?;
        Ok(vec![data, records.to_cbor()])
    },
};

/// Evidence records (RFC 4998), and the time stamps in them (RFC 3161).
pub(super) const EVIDENCE_RECORD: Target = Target {
    name: "archive-evidence-record",
    run: |input| {
        if let Ok(record) = EvidenceRecord::from_der(input) {
            assert!(
                record.to_der().is_ok_and(|again| again == input),
                "there is one encoding only"
            );
            if let (Ok(roots), Some(at)) = (roots(), time_of(&record)) {
                let _ = record.verify(&SeedData, &roots, at);
            }
        }
        if let Ok(token) = Token::from_der(input) {
            let (Ok(roots), at) = (roots(), token.unverified_time()) else {
                return;
            };
            let imprint = token.imprint().clone();
            let _ = token.verify(&imprint, &roots, at);
            let _ = token.crls();
        }
    },
    seeds: || {
        let archive = golden(0)?;
        let mut seeds = vec![nested(64)?, nested(4096)?];
        for record in [archive.record(), &renewed()?] {
            seeds.push(record.to_der()?);
            seeds.extend(record.tokens().map(|token| token.der().to_vec()));
        }
        Ok(seeds)
    },
};

/// What the records of the seeds cover.
struct SeedData;

impl DataHashes for SeedData {
    fn hashes(&self, algorithm: ArchiveHash) -> Option<Vec<Imprint>> {
        Some(vec![algorithm.of(b"head"), algorithm.of(b"data")])
    }
}

/// A record with what one has after decades: revocation lists in a token, another authority with other keys, and
/// another hash algorithm.
fn renewed() -> Result<EvidenceRecord> {
    let profile = AuthorityProfile {
        keys: Keys::Rsa,
        ..AuthorityProfile::default()
    };
    let (ecdsa, rsa) = (TimeAuthority::new()?, TimeAuthority::with(profile, None)?);
    let stamp = |authority: &TimeAuthority, imprint| -> Result<Token> {
        let request = TimeStampRequest::new(imprint, Nonce::new([1; 8]));
        Ok(request.token(&authority.answer(&request.to_der()?)?)?)
    };
    let data = |algorithm| SeedData.hashes(algorithm).context("hashes of the data");
    let first = data(ArchiveHash::Sha256)?;
    let imprint = first_imprint(&first).context("a first imprint")?;
    let record = EvidenceRecord::new(&first, stamp(&ecdsa, imprint)?)?;
    let record = record.with_crls(&[ecdsa.crl(None)?])?;
    let imprint = record.renewal_imprint()?;
    let record = record.renewed(stamp(&rsa, imprint)?)?;
    let anew = data(ArchiveHash::Sha512)?;
    let imprint = record.rehash_imprint(&anew)?;
    Ok(record.rehashed(&anew, stamp(&rsa, imprint)?)?)
}

/// Sequences in one another, as no token has them.
fn nested(depth: usize) -> Result<Vec<u8>> {
    let mut inner = [&[0x04, 0x82, 1, 0], [0; 256].as_slice()].concat();
    for _ in 0..depth {
        let length = u16::try_from(inner.len())?.to_be_bytes();
        inner = [&[0x30, 0x82], length.as_slice(), &inner].concat();
    }
    Ok(inner)
}

/// Whether an archive proves its time; `None` if it is none.
fn verify(input: &[u8]) -> Option<bool> {
    let mut reader = Reader::open(Cursor::new(input)).ok()?;
    let at = time_of(reader.record())?;
    let checked = match reader.head().form {
        Form::Records => {
            let mut scanner = RecordScanner::new(|_: RecordName<'_>, _: &[u8]| Ok(()));
            let checked = reader.check(&[], &mut scanner).ok()?;
            scanner.finish().ok()?;
            checked
        }
        _ => reader.check(&[], &mut sink()).ok()?,
    };
    Some(checked.verify(&roots().ok()?, at).is_ok())
}

/// The records, and what they are when they are written again.
fn scan(input: &[u8], piece: usize) -> Option<(Records, Vec<u8>)> {
    let mut writer = RecordWriter::new(Vec::new());
    let mut scanner = RecordScanner::new(|name: RecordName<'_>, content: &[u8]| {
        writer.record(name, content).map_err(std::io::Error::other)
    });
    for piece in input.chunks(piece.max(1)) {
        scanner.write_all(piece).ok()?;
    }
    let records = scanner.finish().ok()?.records;
    let written = writer.finish().ok()?;
    assert!(written.records == records, "the tree is another one");
    Some((records, written.out))
}

fn golden(which: usize) -> Result<Reader<Cursor<&'static [u8]>>> {
    let bytes = GOLDEN.get(which).context("a golden file")?;
    Ok(Reader::open(Cursor::new(*bytes))?)
}

fn roots() -> Result<TrustAnchors> {
    Ok(TrustAnchors::from_pem(ROOT)?)
}

/// A minute after the time that the first time stamp says.
fn time_of(record: &EvidenceRecord) -> Option<UnixTime> {
    let time = record.tokens().next()?.unverified_time();
    let later = time.as_secs().checked_add(60)?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(later)))
}
