//! Evidence records through the end of authorities and hash algorithms.

use archive::evidence_record::{DataHashes, EvidenceRecord, RecordError, first_imprint};
use archive::{ArchiveHash, Imprint};
use cert_chain::TrustAnchors;
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use x509_cert::crl::CertificateList;
use x509_cert::ext::Extension;

use crate::authority::{Authority, after, later, now};

/// Data objects of a record, in memory.
struct Data(Vec<Vec<u8>>);

impl DataHashes for Data {
    fn hashes(&self, algorithm: ArchiveHash) -> Option<Vec<Imprint>> {
        Some(self.0.iter().map(|object| algorithm.of(object)).collect())
    }
}

fn data() -> Data {
    Data(vec![
        b"label, chain, evidence".to_vec(),
        b"21.4 degrees".to_vec(),
    ])
}

fn record(authority: &Authority, data: &Data) -> EvidenceRecord {
    let hashes = data.hashes(ArchiveHash::Sha256).unwrap();
    let token = authority.stamp(first_imprint(&hashes).unwrap());
    EvidenceRecord::new(&hashes, token).unwrap()
}

fn both(first: &Authority, second: &Authority) -> TrustAnchors {
    let roots = [first.read("root.pem"), second.read("root.pem")].concat();
    TrustAnchors::from_pem(&roots).unwrap()
}

#[test]
fn a_record_proves_that_its_data_were_there_before_its_time() {
    let authority = Authority::new();
    let record = record(&authority, &data());
    let read = EvidenceRecord::from_der(&record.to_der().unwrap()).unwrap();
    assert_eq!(read, record);
    let verified = read.verify(&data(), &authority.anchors(), now()).unwrap();
    assert!(verified.first().before() <= now());
    assert!(verified.renewals().is_empty());
    let other = Data(vec![
        b"label, chain, evidence".to_vec(),
        b"24.1 degrees".to_vec(),
    ]);
    let refused = read.verify(&other, &authority.anchors(), now());
    assert!(matches!(refused, Err(RecordError::OtherData { number: 1 })));
}

#[test]
fn a_record_that_was_renewed_outlives_an_authority_whose_key_is_revoked() {
    let (first, second) = (Authority::new(), Authority::new());
    let record = record(&first, &data())
        .with_crls(&[first.crl(None)])
        .unwrap();
    let before = record.clone();
    let token = second.stamp(record.renewal_imprint().unwrap());
    let since = after(token.unverified_time(), 60);
    let record = record.renewed(token).unwrap();
    let revoked = first.crl(Some(since));
    let anchors = both(&first, &second).with_carried([revoked.as_slice()]);
    let at = later(1);
    let verified = record.verify(&data(), &anchors, at).unwrap();
    assert_eq!(verified.renewals().len(), 1);
    let refused = before.verify(&data(), &anchors, at);
    assert!(
        matches!(refused, Err(RecordError::Overdue { number: 1, .. })),
        "{refused:?}"
    );
}

#[test]
fn a_renewal_after_the_first_authority_was_revoked_is_too_late() {
    let (first, second) = (Authority::new(), Authority::new());
    let record = record(&first, &data());
    let token = second.stamp(record.renewal_imprint().unwrap());
    // Not after the second authority's time, and so not before the first one's.
    let revoked = first.crl(Some(token.unverified_time()));
    let record = record.renewed(token).unwrap();
    let anchors = both(&first, &second).with_carried([revoked.as_slice()]);
    let refused = record.verify(&data(), &anchors, later(1));
    assert!(
        matches!(refused, Err(RecordError::Stamp { number: 1, .. })),
        "{refused:?}"
    );
}

#[test]
fn a_record_is_renewed_with_another_hash_algorithm_over_the_data_and_all_time_stamps() {
    let (first, second) = (Authority::new(), Authority::new());
    let mut record = record(&first, &data());
    for hash in [ArchiveHash::Sha384, ArchiveHash::Sha512] {
        let hashes = data().hashes(hash).unwrap();
        let token = second.stamp(record.rehash_imprint(&hashes).unwrap());
        record = record.rehashed(&hashes, token).unwrap();
        let token = first.stamp(record.renewal_imprint().unwrap());
        record = record.renewed(token).unwrap();
    }
    let anchors = both(&first, &second);
    let read = EvidenceRecord::from_der(&record.to_der().unwrap()).unwrap();
    let verified = read.verify(&data(), &anchors, now()).unwrap();
    assert_eq!(verified.renewals().len(), 4);
    assert_eq!(read.algorithms().len(), 3);
    // A time stamp over a chain that was altered meanwhile covers something else.
    let hashes = data().hashes(ArchiveHash::Sha512).unwrap();
    let token = second.stamp(record.rehash_imprint(&hashes).unwrap());
    let longer = record
        .clone()
        .renewed(first.stamp(record.renewal_imprint().unwrap()))
        .unwrap();
    assert!(matches!(
        longer.rehashed(&hashes, token),
        Err(RecordError::OtherData { number: 7 })
    ));
}

#[test]
fn a_record_has_no_more_chains_than_can_be_verified_in_time() {
    let authority = Authority::new();
    let mut record = record(&authority, &data());
    let hashes = data().hashes(ArchiveHash::Sha256).unwrap();
    for _ in 1..16 {
        let token = authority.stamp(record.rehash_imprint(&hashes).unwrap());
        record = record.rehashed(&hashes, token).unwrap();
    }
    let read = EvidenceRecord::from_der(&record.to_der().unwrap()).unwrap();
    read.verify(&data(), &authority.anchors(), now()).unwrap();
    let token = authority.stamp(record.rehash_imprint(&hashes).unwrap());
    let refused = record.rehashed(&hashes, token);
    assert!(
        matches!(refused, Err(RecordError::TooManyStamps)),
        "{refused:?}"
    );
}

#[test]
fn every_flipped_byte_and_every_truncation_of_a_record_that_was_renewed_is_noticed_up_to_its_last_stamp()
 {
    let authority = Authority::new();
    let record = record(&authority, &data());
    let token = authority.stamp(record.renewal_imprint().unwrap());
    let last = token.der().len();
    let record = record.renewed(token).unwrap().to_der().unwrap();
    let anchors = authority.anchors();
    let at = now();
    for index in 0..record.len() - last {
        let mut altered = record.clone();
        altered[index] ^= 1;
        let read = EvidenceRecord::from_der(&altered);
        assert!(
            read.and_then(|read| read.verify(&data(), &anchors, at))
                .is_err(),
            "byte {index}"
        );
        assert!(EvidenceRecord::from_der(&record[..index]).is_err());
    }
}

/// A revocation list of some 900 KiB, of which almost all is one extension.
fn long_list(authority: &Authority, number: u8) -> Vec<u8> {
    let mut list = CertificateList::from_der(&authority.crl(None)).unwrap();
    let extension = Extension {
        extn_id: ObjectIdentifier::new_unwrap("1.2.3.4"),
        critical: false,
        extn_value: OctetString::new(vec![number; 900 * 1024]).unwrap(),
    };
    let extensions = list.tbs_cert_list.crl_extensions.get_or_insert_default();
    extensions.push(extension);
    list.to_der().unwrap()
}

#[test]
fn a_record_that_would_be_too_long_to_be_read_is_not_written() {
    let authority = Authority::new();
    let mut record = record(&authority, &data());
    for number in 0.. {
        let read = EvidenceRecord::from_der(&record.to_der().unwrap()).unwrap();
        assert_eq!(read, record);
        let list = long_list(&authority, number);
        record = match record.with_crls(&[list]) {
            Ok(longer) => longer,
            Err(refused) => {
                assert!(
                    matches!(refused, RecordError::TooLong { .. }),
                    "{refused:?}"
                );
                assert_eq!(number, 9);
                return;
            }
        };
        let token = authority.stamp(record.renewal_imprint().unwrap());
        record = record.renewed(token).unwrap();
    }
}
