//! Files that were written once, and have to be read for ever: these bytes are version 1 of the formats.
//!
//! What they prove is proven as of a time then.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archive::records::{RecordName, RecordScanner, SingleRecord};
use archive::{Form, Reader};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;

use crate::authority::Authority;
use crate::cose_time_stamps::example;
use crate::{files, records};

const DATA: &[u8] = b"This is the content.";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn roots() -> TrustAnchors {
    TrustAnchors::from_pem(&golden("time_root.pem")).unwrap()
}

fn some_records() -> Vec<(String, Vec<u8>)> {
    [
        "2026-11-28/000001",
        "2026-11-28/000002",
        "2026-11-29/000001",
    ]
    .map(|name| (name.to_owned(), name.as_bytes().to_vec()))
    .to_vec()
}

#[test]
fn the_golden_archive_is_read_and_is_written_as_it_is() {
    let bytes = golden("archive_v1.cbor");
    let mut reader = Reader::open(Cursor::new(&bytes)).unwrap();
    assert_eq!(reader.head().form, Form::File);
    let mut data = Vec::new();
    let checked = reader.check(&[], &mut data).unwrap();
    assert_eq!(data, DATA);
    let at = reader.record().tokens().next().unwrap().unverified_time();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.as_secs() + 60));
    let verified = checked.verify(&roots(), at).unwrap();
    assert_eq!(verified.signed(), example());
    let record = reader.record().clone();
    let mut again = Vec::new();
    reader.rewrite(&record, &mut again).unwrap();
    assert_eq!(again, bytes);
}

#[test]
fn the_golden_records_are_read_and_one_is_taken_out_as_it_was() {
    let bytes = golden("records_v1.cbor");
    let mut reader = Reader::open(Cursor::new(&bytes)).unwrap();
    let mut found = Vec::new();
    let mut scanner = RecordScanner::new(|name: RecordName<'_>, content: &[u8]| {
        found.push((name.as_str().to_owned(), content.to_vec()));
        Ok(())
    });
    reader.check(&[], &mut scanner).unwrap();
    let scanned = scanner.finish().unwrap();
    assert_eq!(found, some_records());
    let root = "2604b3cb5f06b036bfa1b95c6b749339322181fc31faa7d0b2171b8d6829cd37";
    assert_eq!(scanned.records.root().to_string(), root);
    let single = golden("single_record_v1.cbor");
    let wanted = some_records()[1].0.clone();
    assert_eq!(records::take(&bytes, &wanted).to_cbor().unwrap(), single);
    let single = SingleRecord::from_cbor(&single).unwrap();
    let at = single.record().tokens().next().unwrap().unverified_time();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.as_secs() + 60));
    single.verify(&roots(), at).unwrap();
    let placed = single.verify_place(&scanned.records).unwrap();
    assert_eq!(placed.content(), some_records()[1].1);
}

/// Only a new version of a format has a reason to run this.
#[test]
#[ignore = "writes the golden files anew"]
fn golden_files_are_written() {
    let authority = Authority::new();
    let (records, _) = records::archive(&authority, &some_records());
    let single = records::take(&records, &some_records()[1].0);
    for (name, bytes) in [
        ("time_root.pem", authority.read("root.pem")),
        (
            "archive_v1.cbor",
            files::archive(&authority, Form::File, DATA),
        ),
        ("records_v1.cbor", records.clone()),
        ("single_record_v1.cbor", single.to_cbor().unwrap()),
    ] {
        fs::write(path(name), bytes).unwrap();
    }
}
