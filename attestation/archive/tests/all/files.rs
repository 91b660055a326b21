//! Archives as files.

use std::fs::{self, File};
use std::io::{Cursor, Write, sink};

use archive::cose_time_stamp::{StampedSign1, signature_imprint};
use archive::{
    ArchiveError, ArchiveHash, DataHashes, EvidenceRecord, Form, Head, Reader, VerifiedArchive,
    Writer,
};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;

use crate::authority::{Authority, after, later, now};
use crate::cose_time_stamps::example;

const DATA: &[u8] = b"This is the content.";

/// An archive of these data, with a signature that nobody verifies here.
pub(crate) fn archive(authority: &Authority, form: Form, data: &[u8]) -> Vec<u8> {
    let imprint = signature_imprint(&example(), ArchiveHash::Sha256).unwrap();
    let signed = StampedSign1 {
        sign1: example(),
        token: Some(authority.stamp(imprint)),
    };
    let mut head = Head::new(signed.to_cbor().unwrap(), form, data.len() as u64);
    head.crls = Some(vec![b"a list".to_vec().into()]);
    head.policy = Some("the policy".to_owned());
    head.verdict = Some("what was found".to_owned());
    let mut writer = Writer::new(Vec::new(), &head).unwrap();
    writer.write_all(data).unwrap();
    let unstamped = writer.finish().unwrap();
    let token = authority.stamp(unstamped.imprint().unwrap());
    let record = EvidenceRecord::new(unstamped.hashes(), token).unwrap();
    unstamped.finish(&record).unwrap()
}

fn verify(
    archive: &[u8],
    anchors: &TrustAnchors,
    at: UnixTime,
) -> Result<VerifiedArchive, ArchiveError> {
    let mut reader = Reader::open(Cursor::new(archive))?;
    reader.check(&[], &mut sink())?.verify(anchors, at)
}

#[test]
fn an_archive_gives_back_its_data_and_proves_when_they_were_signed() {
    let authority = Authority::new();
    for (form, data) in [
        (Form::File, DATA),
        (Form::Records, DATA),
        (Form::File, b""),
        (Form::Elsewhere, b""),
    ] {
        let archive = archive(&authority, form, data);
        let mut reader = Reader::open(Cursor::new(&archive)).unwrap();
        let mut found = Vec::new();
        let checked = reader.check(&[], &mut found).unwrap();
        assert_eq!(found, data);
        let verified = checked.verify(&authority.anchors(), now()).unwrap();
        assert_eq!(verified.signed(), example());
        assert!(verified.signature().before() <= verified.record().first().before());
        let expected = (form != Form::Elsewhere).then(|| ArchiveHash::Sha256.of(data));
        assert_eq!(verified.data(), expected.as_ref());
        assert!(verify(&archive, &Authority::new().anchors(), now()).is_err());
    }
}

#[test]
fn every_flipped_byte_and_every_truncation_of_an_archive_is_noticed() {
    let authority = Authority::new();
    let archive = archive(&authority, Form::File, DATA);
    let (anchors, at) = (authority.anchors(), now());
    for index in 0..archive.len() {
        for flipped in [0x01, 0x80] {
            let mut altered = archive.clone();
            altered[index] ^= flipped;
            assert!(verify(&altered, &anchors, at).is_err(), "byte {index}");
        }
        assert!(
            verify(&archive[..index], &anchors, at).is_err(),
            "{index} bytes"
        );
    }
    let longer = [archive.as_slice(), &[0]].concat();
    assert!(verify(&longer, &anchors, at).is_err());
    verify(&archive, &anchors, at).unwrap();
}

#[test]
fn a_forged_archive_with_a_right_checksum_is_refused() {
    let authority = Authority::new();
    let genuine = archive(&authority, Form::File, DATA);
    let reader = Reader::open(Cursor::new(&genuine)).unwrap();
    let mut writer = Writer::new(Vec::new(), reader.head()).unwrap();
    writer.write_all(b"This is other stuff.").unwrap();
    let forged = writer.finish().unwrap().finish(reader.record()).unwrap();
    let refused = verify(&forged, &authority.anchors(), now());
    assert!(
        matches!(refused, Err(ArchiveError::Record(_))),
        "{refused:?}"
    );
}

#[test]
fn an_archive_that_is_renewed_with_another_hash_algorithm_outlives_its_first_authority() {
    let (first, second) = (Authority::new(), Authority::new());
    let archive = archive(&first, Form::File, DATA);
    let mut reader = Reader::open(Cursor::new(&archive)).unwrap();
    let checked = reader.check(&[ArchiveHash::Sha512], &mut sink()).unwrap();
    let hashes = checked.hashes(ArchiveHash::Sha512).unwrap();
    let record = reader.record().clone();
    let token = second.stamp(record.rehash_imprint(&hashes).unwrap());
    let since = after(token.unverified_time(), 60);
    let record = record.rehashed(&hashes, token).unwrap();
    let mut renewed = Vec::new();
    reader.rewrite(&record, &mut renewed).unwrap();
    let revoked = first.crl(Some(since));
    let roots = [first.read("root.pem"), second.read("root.pem")].concat();
    let anchors = TrustAnchors::from_pem(&roots)
        .unwrap()
        .with_carried([revoked.as_slice()]);
    verify(&renewed, &anchors, later(1)).unwrap();
    assert!(verify(&archive, &anchors, later(1)).is_err());
}

#[test]
fn data_that_change_between_their_check_and_their_renewal_are_noticed() {
    let authority = Authority::new();
    let genuine = archive(&authority, Form::File, DATA);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    fs::write(&path, &genuine).unwrap();
    let mut reader = Reader::open(File::open(&path).unwrap()).unwrap();
    reader.check(&[], &mut sink()).unwrap();
    let record = reader.record().clone();
    let token = authority.stamp(record.renewal_imprint().unwrap());
    let record = record.renewed(token).unwrap();
    reader.rewrite(&record, &mut sink()).unwrap();
    let at = genuine
        .windows(DATA.len())
        .rposition(|part| part == DATA)
        .unwrap();
    let mut changed = genuine;
    changed[at] ^= 1;
    fs::write(&path, changed).unwrap();
    assert!(matches!(
        reader.rewrite(&record, &mut sink()),
        Err(ArchiveError::Damaged)
    ));
}

#[test]
fn data_of_another_length_than_announced_make_no_archive() {
    let head = Head::new(example(), Form::File, 3);
    let mut writer = Writer::new(Vec::new(), &head).unwrap();
    writer.write_all(b"four").unwrap();
    assert!(matches!(
        writer.finish(),
        Err(ArchiveError::Length { found: 4, said: 3 })
    ));
}

#[test]
fn lengths_that_are_too_great_are_refused_before_anything_is_read() {
    for huge in ["845b7fffffffffffffff", "845a10000000", "8458"] {
        let bytes = hex::decode(huge).unwrap();
        assert!(Reader::open(Cursor::new(bytes)).is_err());
    }
}

#[test]
fn a_head_with_more_revocation_lists_than_are_read_is_not_written() {
    let mut head = Head::new(example(), Form::File, 3);
    head.crls = Some(vec![b"a list".to_vec().into(); 16]);
    Writer::new(sink(), &head).unwrap();
    head.crls = Some(vec![b"a list".to_vec().into(); 17]);
    let refused = Writer::new(sink(), &head);
    assert!(
        matches!(refused, Err(ArchiveError::TooManyLists { found: 17, .. })),
        "{refused:?}"
    );
}
