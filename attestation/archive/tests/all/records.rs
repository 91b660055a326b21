//! Many records in one archive, and single ones that were taken out.

use std::io::{Cursor, Write, sink};

use archive::cose_time_stamp::{StampedSign1, signature_imprint};
use archive::records::{
    CONTENT_TYPE, NameError, RecordName, RecordScanner, RecordWriter, Records, RecordsError,
    Scanned, SingleRecord, record_length,
};
use archive::{ArchiveError, ArchiveHash, DataHashes, EvidenceRecord, Form, Head, Reader, Writer};
use minicbor::Encoder;

use crate::authority::{Authority, now};
use crate::cose_time_stamps::example;

type Pair = (String, Vec<u8>);

fn some_records() -> Vec<Pair> {
    let names = (0..300usize).map(|number| format!("{number:04}/{}", "n".repeat(number % 250 + 1)));
    names
        .map(|name| (name.clone(), name.repeat(3).into_bytes()))
        .collect()
}

fn name(text: &str) -> RecordName<'_> {
    RecordName::parse(text).unwrap()
}

pub(crate) fn written(records: &[Pair]) -> (Vec<u8>, Records) {
    let mut writer = RecordWriter::new(Vec::new());
    for (own, content) in records {
        writer.record(name(own), content).unwrap();
    }
    let written = writer.finish().unwrap();
    assert_eq!(written.records.length(), written.out.len() as u64);
    (written.out, written.records)
}

/// Reads records that come in pieces of some length.
fn read(bytes: &[u8], piece: usize) -> Result<(Vec<Pair>, Records), ArchiveError> {
    let mut found = Vec::new();
    let mut scanner = RecordScanner::new(|name: RecordName<'_>, content: &[u8]| {
        found.push((name.as_str().to_owned(), content.to_vec()));
        Ok(())
    });
    for piece in bytes.chunks(piece) {
        scanner.write_all(piece)?;
    }
    let records = scanner.finish()?.records;
    Ok((found, records))
}

/// An archive of these records, with a signature that nobody verifies here.
pub(crate) fn archive(authority: &Authority, records: &[Pair]) -> (Vec<u8>, Records) {
    let (data, records) = written(records);
    let imprint = signature_imprint(&example(), ArchiveHash::Sha256).unwrap();
    let signed = StampedSign1 {
        sign1: example(),
        token: Some(authority.stamp(imprint)),
    };
    let head = Head::new(signed.to_cbor().unwrap(), Form::Records, data.len() as u64);
    let mut writer = Writer::new(Vec::new(), &head).unwrap();
    writer.write_all(&data).unwrap();
    let unstamped = writer.finish().unwrap();
    let token = authority.stamp(unstamped.imprint().unwrap());
    let record = EvidenceRecord::new(unstamped.hashes(), token).unwrap();
    (unstamped.finish(&record).unwrap(), records)
}

fn scan(archive: &[u8], wanted: &str) -> (archive::CheckedArchive, Scanned) {
    let mut reader = Reader::open(Cursor::new(archive)).unwrap();
    let mut scanner =
        RecordScanner::new(|_: RecordName<'_>, _: &[u8]| Ok(())).wanting(name(wanted));
    let checked = reader.check(&[], &mut scanner).unwrap();
    (checked, scanner.finish().unwrap())
}

pub(crate) fn take(archive: &[u8], wanted: &str) -> SingleRecord {
    let (checked, scanned) = scan(archive, wanted);
    SingleRecord::take(&checked, scanned.wanted.unwrap())
}

#[test]
fn records_are_read_as_they_were_written_whatever_pieces_they_come_in() {
    let expected = some_records();
    let (bytes, records) = written(&expected);
    let computed: u64 = (expected.iter())
        .map(|(own, content)| record_length(name(own), content.len() as u64))
        .sum();
    assert_eq!(computed, bytes.len() as u64);
    assert_eq!(records.count(), 300);
    for piece in [1, 7, 1000, bytes.len()] {
        assert_eq!(read(&bytes, piece).unwrap(), (expected.clone(), records));
    }
}

#[test]
fn records_have_names_that_rise_and_a_cut_is_noticed() {
    let mut writer = RecordWriter::new(Vec::new());
    writer.record(name("b"), b"1").unwrap();
    for again in ["a", "b"] {
        let refused = writer.record(name(again), b"2");
        assert!(
            matches!(
                refused,
                Err(ArchiveError::Records(RecordsError::Order { .. }))
            ),
            "{again:?}"
        );
    }
    let one = writer.finish().unwrap().out;
    let twice = read(&[one.as_slice(), &one].concat(), 100);
    assert!(
        matches!(
            twice,
            Err(ArchiveError::Records(RecordsError::Order { .. }))
        ),
        "{twice:?}"
    );
    for length in 0..one.len() {
        assert!(read(&one[..length], 100).is_err(), "{length} bytes");
    }
    assert!(matches!(
        RecordWriter::new(sink()).finish(),
        Err(RecordsError::None)
    ));
}

/// As an archive that somebody else's program made may have them: `written` refuses them, too.
#[test]
fn a_record_below_another_one_is_neither_written_nor_read() {
    for (names, file) in [
        (&["a", "a/b"][..], "a"),
        (&["a", "a.txt", "a.txt.old", "a/b/c"], "a"),
        (&["d/a", "d/a-", "d/a/b"], "d/a"),
        (&["a", "a-/a", "a-/a+", "a-/a/b"], "a-/a"),
    ] {
        let below = |refused: &Result<(), ArchiveError>| {
            matches!(
                refused,
                Err(ArchiveError::Records(RecordsError::Below { name, file: found }))
                    if name == names.last().unwrap() && found == file
            )
        };
        let mut writer = RecordWriter::new(sink());
        let (last, before) = names.split_last().unwrap();
        for own in before {
            writer.record(name(own), b"").unwrap();
        }
        let refused = writer.record(name(last), b"");
        assert!(below(&refused), "{refused:?}");
        let bytes: Vec<u8> = (names.iter())
            .flat_map(|own| written(&[((*own).to_owned(), Vec::new())]).0)
            .collect();
        let refused = read(&bytes, 7).map(drop);
        assert!(below(&refused), "{refused:?}");
    }
    let beside = ["a", "a.txt", "a0/a", "a0/a.txt", "b/a", "b/a0/a"];
    let beside = beside.map(|own| (own.to_owned(), Vec::new()));
    let (bytes, records) = written(&beside);
    assert_eq!(read(&bytes, 7).unwrap(), (beside.to_vec(), records));
}

#[test]
fn names_that_lead_elsewhere_are_neither_written_nor_read() {
    let long_part = "n".repeat(256);
    let long = "n/".repeat(2048) + "n";
    for (bad, why) in [
        ("", NameError::Empty),
        ("/etc/passwd", NameError::Absolute),
        ("..", NameError::Part),
        ("a/../../b", NameError::Part),
        ("a/./b", NameError::Part),
        ("a//b", NameError::Part),
        ("a/", NameError::Part),
        ("a\0b", NameError::Nul),
        (long_part.as_str(), NameError::PartTooLong),
        (long.as_str(), NameError::TooLong),
    ] {
        assert_eq!(RecordName::parse(bad), Err(why), "{bad:?}");
        let mut entry = Encoder::new(Vec::new());
        entry
            .array(2)
            .unwrap()
            .str(bad)
            .unwrap()
            .bytes(b"")
            .unwrap();
        let refused = read(entry.writer(), 100_000);
        assert!(
            matches!(
                refused,
                Err(ArchiveError::Records(RecordsError::Name { source, .. })) if source == why
            ),
            "{bad:?}"
        );
    }
    for good in ["a", "..a/b..", "ä/ö ü", &"n".repeat(255)] {
        RecordName::parse(good).unwrap();
    }
}

#[test]
fn records_in_another_encoding_or_too_large_are_refused() {
    // A name, or a content, whose length has more bytes than it needs; one of no length; other items.
    for other in [
        "82780161 40",
        "8261615800",
        "9f616140ff",
        "82616140f6",
        "8161 61",
        "83616140 40",
        "82416140",
        "826161 5f40ff",
        "8261615bffffffffffffffff",
        "826161 5a01000001",
    ] {
        let mut bytes = hex::decode(other.replace(' ', "")).unwrap();
        if other.ends_with("1000001") {
            bytes.resize(17 * 1024 * 1024, 0);
        }
        assert!(read(&bytes, 1 << 20).is_err(), "{other}");
    }
    let large = vec![0; 16 * 1024 * 1024 + 1];
    let refused = RecordWriter::new(sink()).record(name("large"), &large);
    assert!(
        matches!(
            refused,
            Err(ArchiveError::Records(RecordsError::TooLong { .. }))
        ),
        "{refused:?}"
    );
}

#[test]
fn what_is_signed_about_records_has_one_form() {
    let (_, records) = written(&some_records());
    let bytes = records.to_cbor();
    assert_eq!(Records::from_signed(CONTENT_TYPE, &bytes).unwrap(), records);
    assert!(Records::from_signed("text/plain", &bytes).is_err());
    for length in 0..bytes.len() {
        assert!(Records::from_signed(CONTENT_TYPE, &bytes[..length]).is_err());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(Records::from_signed(CONTENT_TYPE, &longer).is_err());
    for flipped in 0..bytes.len() {
        let mut other = bytes.clone();
        other[flipped] ^= 1;
        let read = Records::from_signed(CONTENT_TYPE, &other);
        assert!(read.is_err() || read.unwrap().must_be(&records).is_err());
    }
}

#[test]
fn a_record_that_was_taken_out_proves_itself_alone() {
    let authority = Authority::new();
    let all = some_records();
    let (archive, records) = archive(&authority, &all);
    for (index, (own, content)) in all.iter().enumerate().step_by(97) {
        let single = take(&archive, own);
        let bytes = single.to_cbor().unwrap();
        assert!(SingleRecord::begins(&bytes) && !SingleRecord::begins(&archive));
        assert!(bytes.len() < archive.len() / 10);
        let read = SingleRecord::from_cbor(&bytes).unwrap();
        let verified = read.verify(&authority.anchors(), now()).unwrap();
        assert_eq!(verified.signed(), example());
        assert!(read.verify(&Authority::new().anchors(), now()).is_err());
        let placed = read.verify_place(&records).unwrap();
        assert_eq!(
            (placed.name(), placed.content()),
            (own.as_str(), content.as_slice())
        );
        assert_eq!(placed.index(), index as u64);
        let (_, others) = written(&all[1..]);
        assert!(read.verify_place(&others).is_err());
    }
    assert!(scan(&archive, "missing").1.wanted.is_none());
}

#[test]
fn a_record_that_was_taken_out_of_a_renewed_archive_proves_itself_too() {
    let (first, second) = (Authority::new(), Authority::new());
    let (archive, records) = archive(&first, &some_records());
    let mut reader = Reader::open(Cursor::new(&archive)).unwrap();
    let checked = reader.check(&[ArchiveHash::Sha512], &mut sink()).unwrap();
    let hashes = checked.hashes(ArchiveHash::Sha512).unwrap();
    let record = reader.record().clone();
    let token = second.stamp(record.rehash_imprint(&hashes).unwrap());
    let record = record.rehashed(&hashes, token).unwrap();
    let mut renewed = Vec::new();
    reader.rewrite(&record, &mut renewed).unwrap();
    let (own, _) = &some_records()[123];
    let bytes = take(&renewed, own).to_cbor().unwrap();
    let single = SingleRecord::from_cbor(&bytes).unwrap();
    let roots = [first.read("root.pem"), second.read("root.pem")].concat();
    let anchors = cert_chain::TrustAnchors::from_pem(&roots).unwrap();
    single.verify(&anchors, now()).unwrap();
    assert!(single.verify(&first.anchors(), now()).is_err());
    single.verify_place(&records).unwrap();
}

#[test]
fn every_flipped_byte_and_every_truncation_of_a_single_record_is_noticed() {
    let authority = Authority::new();
    let (archive, _) = archive(&authority, &some_records()[..5]);
    let bytes = take(&archive, &some_records()[3].0).to_cbor().unwrap();
    for index in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[index] ^= 0x01;
        assert!(SingleRecord::from_cbor(&altered).is_err(), "byte {index}");
        assert!(SingleRecord::from_cbor(&bytes[..index]).is_err());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(SingleRecord::from_cbor(&longer).is_err());
}

/// Whoever forges a record computes its checksum as well.
#[test]
fn a_forged_record_with_a_right_checksum_is_refused() {
    let authority = Authority::new();
    let all = some_records();
    let (genuine, records) = archive(&authority, &all);
    let mut forged = all.clone();
    forged[42].1 = b"forged".to_vec();
    let (other, _) = archive(&authority, &forged);
    let wanted = &all[42].0;
    // The forger's record under the genuine archive's head, and all of the forger's under the genuine signature.
    let (checked, _) = scan(&genuine, wanted);
    let (_, scanned) = scan(&other, wanted);
    let single = SingleRecord::take(&checked, scanned.wanted.unwrap());
    let single = SingleRecord::from_cbor(&single.to_cbor().unwrap()).unwrap();
    single.verify(&authority.anchors(), now()).unwrap();
    let refused = single.verify_place(&records);
    assert!(
        matches!(refused, Err(RecordsError::NotAmong { .. })),
        "{refused:?}"
    );
    // Another head, and the genuine proof of time.
    let reader = Reader::open(Cursor::new(&genuine)).unwrap();
    let mut head = reader.head().clone();
    head.policy = Some("anything is good".to_owned());
    let (data, _) = written(&all);
    let mut writer = Writer::new(Vec::new(), &head).unwrap();
    writer.write_all(&data).unwrap();
    let forged = writer.finish().unwrap().finish(reader.record()).unwrap();
    let refused = take(&forged, wanted).verify(&authority.anchors(), now());
    assert!(
        matches!(refused, Err(ArchiveError::Record(_))),
        "{refused:?}"
    );
}
