//! Time stamps by OpenSSL.

use archive::time_stamp::{MAX_TOKEN, Nonce, token_from_response};
use archive::{ArchiveHash, TimeStampError, TimeStampRequest, Token};
use cert_chain::{ChainError, RevocationError};

use crate::authority::{Authority, Keys, after, later, now, request};

const DATA: &[u8] = b"21.4 degrees";

#[test]
fn time_stamps_of_openssl_verify_with_every_hash_algorithm_and_kind_of_key() {
    for keys in [Keys::P256, Keys::Rsa] {
        let authority = Authority::with(keys, "authority");
        for hash in [
            ArchiveHash::Sha256,
            ArchiveHash::Sha384,
            ArchiveHash::Sha512,
        ] {
            let token = authority.stamp(hash.of(DATA));
            let before = now().as_secs() - 30;
            let stamp = token
                .verify(&hash.of(DATA), &authority.anchors(), now())
                .unwrap();
            assert!((before..=now().as_secs()).contains(&stamp.before().as_secs()));
            assert_eq!(stamp.authority().name(), "CN=Authority of time here");
            assert!(authority.openssl_verifies(token.der(), DATA));
        }
    }
}

#[test]
fn a_time_stamp_is_of_the_data_that_it_was_made_for() {
    let authority = Authority::new();
    let token = authority.stamp(ArchiveHash::Sha256.of(DATA));
    let other = ArchiveHash::Sha256.of(b"24.1 degrees");
    let refused = token.verify(&other, &authority.anchors(), now());
    assert!(matches!(refused, Err(TimeStampError::Imprint)));
    let other = ArchiveHash::Sha512.of(DATA);
    let refused = token.verify(&other, &authority.anchors(), now());
    assert!(matches!(refused, Err(TimeStampError::Imprint)));
}

#[test]
fn a_time_stamp_counts_under_the_root_of_its_authority_and_while_its_certificate_is_valid() {
    let authority = Authority::new();
    let imprint = ArchiveHash::Sha256.of(DATA);
    let token = authority.stamp(imprint.clone());
    let refused = token.verify(&imprint, &Authority::new().anchors(), now());
    assert!(
        matches!(refused, Err(TimeStampError::Authority(_))),
        "{refused:?}"
    );
    let refused = token.verify(&imprint, &authority.anchors(), later(3660));
    assert!(
        matches!(refused, Err(TimeStampError::Authority(_))),
        "{refused:?}"
    );
    let early = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        token.unverified_time().as_secs() - 61,
    ));
    let refused = token.verify(&imprint, &authority.anchors(), early);
    assert!(matches!(refused, Err(TimeStampError::Future { .. })));
}

#[test]
fn certificates_that_are_not_for_time_stamps_alone_make_none() {
    // OpenSSL itself refuses to sign with these: a token of a proper authority gets another certificate.
    for extensions in ["not-critical", "two-purposes"] {
        let authority = Authority::with(Keys::P256, extensions);
        let certificate = authority.certificate();
        let refused = cert_chain::VerifiedTimeStampAuthority::verify::<&[u8]>(
            &certificate,
            &[],
            &authority.anchors(),
            now(),
        );
        assert!(
            matches!(refused, Err(ChainError::NoTimeStampAuthority)),
            "{extensions}"
        );
    }
}

#[test]
fn every_flipped_byte_and_every_truncation_of_a_token_is_refused_or_changes_nothing_that_is_proven()
{
    let authority = Authority::new();
    let imprint = ArchiveHash::Sha256.of(DATA);
    let token = authority.stamp(imprint.clone());
    let anchors = authority.anchors();
    let proven = token.verify(&imprint, &anchors, now()).unwrap();
    let mut unnoticed = Vec::new();
    for at in 0..token.der().len() {
        let mut altered = token.der().to_vec();
        altered[at] ^= 1;
        let verified =
            Token::from_der(&altered).and_then(|token| token.verify(&imprint, &anchors, now()));
        if let Ok(stamp) = verified {
            assert_eq!(stamp.before(), proven.before(), "byte {at}");
            unnoticed.push(at);
        }
        assert!(Token::from_der(&token.der()[..at]).is_err());
    }
    // Versions, and the root's certificate, which is needed by nobody: the archive as a whole covers them.
    assert!(unnoticed.len() < token.der().len() / 2, "{unnoticed:?}");
}

#[test]
fn an_answer_to_another_request_and_a_refusal_are_told() {
    let authority = Authority::new();
    let imprint = ArchiveHash::Sha256.of(DATA);
    let answer = authority.answer(&request(imprint.clone()).to_der().unwrap());
    let other = TimeStampRequest::new(imprint, Nonce::new([8; 8]));
    assert!(matches!(other.token(&answer), Err(TimeStampError::Nonce)));
    assert!(matches!(
        request(ArchiveHash::Sha256.of(b"other")).token(&answer),
        Err(TimeStampError::Imprint)
    ));
    let refused = token_from_response(&authority.answer(b"no request"));
    assert!(
        matches!(refused, Err(TimeStampError::Refused { status: 2, .. })),
        "{refused:?}"
    );
    let long = vec![0; 2 * MAX_TOKEN];
    assert!(matches!(
        token_from_response(&long),
        Err(TimeStampError::TooLong { .. })
    ));
}

#[test]
fn an_authority_that_was_revoked_later_counted_and_one_that_was_revoked_before_did_not() {
    let authority = Authority::new();
    let imprint = ArchiveHash::Sha256.of(DATA);
    let token = authority.stamp(imprint.clone());
    let then = token.unverified_time();
    let list = authority.crl(Some(after(then, 60)));
    let token = token.with_crls(&[&list]).unwrap();
    let anchors = authority.anchors();
    let refused = token.verify(&imprint, &anchors, now());
    let Err(TimeStampError::Authority(ChainError::Revocation(RevocationError::Revoked { .. }))) =
        refused
    else {
        panic!("{refused:?}");
    };
    // What another time stamp proves to have existed before the revocation goes on to count.
    token
        .verify(&imprint, &anchors.as_of_proven_time(then), then)
        .unwrap();
    let late = after(then, 60);
    let refused = token.verify(&imprint, &anchors.as_of_proven_time(late), late);
    assert!(matches!(
        refused,
        Err(TimeStampError::Authority(ChainError::Revocation(_)))
    ));
    assert!(authority.openssl_verifies(token.der(), DATA));
}

#[test]
fn a_token_names_the_certificate_of_its_signer_and_goes_with_no_other_of_the_same_number() {
    let authority = Authority::with(Keys::Rsa, "authority");
    let imprint = ArchiveHash::Sha256.of(DATA);
    let token = authority.stamp(imprint.clone());
    let (own, other) = (
        authority.certificate(),
        authority.certificate_with_the_same_number(),
    );
    assert_eq!(own.len(), other.len());
    let der = token.der();
    let at = der
        .windows(own.len())
        .position(|window| window == own)
        .unwrap();
    let swapped = [&der[..at], &other, &der[at + own.len()..]].concat();
    let swapped = Token::from_der(&swapped).unwrap();
    let refused = swapped.verify(&imprint, &authority.anchors(), now());
    let Err(TimeStampError::Malformed(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("not the one that its signature names"));
    assert!(!authority.openssl_verifies(swapped.der(), DATA));
}
